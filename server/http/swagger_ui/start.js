// Swagger UI fills each optional field of a form with a made-up value, which together contradict each other, sends
// those left empty, and keeps the body of one media type when another is chosen.
const OnlyWhatIsGiven = {
  afterLoad() {
    const sample = this.fn.getSampleSchema
    this.fn.getSampleSchema = (schema, mediaType, ...rest) => {
      if (mediaType !== false) return sample(schema, mediaType, ...rest)
      return this.fn.hasSchemaType(schema, "array") ? [] : ""
    }
  },
  wrapComponents: {
    ParameterIncludeEmpty: () => () => null,
  },
  statePlugins: {
    oas3: {
      wrapActions: {
        setRequestContentType: (original, system) => (payload) => {
          system.oas3Actions.setRequestBodyValue({ value: undefined, pathMethod: payload.pathMethod })
          return original(payload)
        },
      },
    },
  },
}

SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  showExtensions: true,
  showCommonExtensions: true,
  validatorUrl: null,
  plugins: [OnlyWhatIsGiven],
})
