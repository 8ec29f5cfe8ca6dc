{{- define "offramp.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{- define "offramp.selectorLabels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "offramp.labels" -}}
{{ include "offramp.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* Name, namespace and labels of an object. */}}
{{- define "offramp.metadata" -}}
name: {{ include "offramp.fullname" . | quote }}
namespace: {{ .Release.Namespace | quote }}
labels:
  {{- include "offramp.labels" . | nindent 2 }}
{{- end }}

{{- define "offramp.image" -}}
{{ printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) }}
{{- end }}

{{- define "offramp.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{ default (include "offramp.fullname" .) .Values.serviceAccount.name }}
{{- else -}}
{{ default "default" .Values.serviceAccount.name }}
{{- end -}}
{{- end }}

{{/* Whole numbers come as floats, and would be written 1e+06. */}}
{{- define "offramp.asText" -}}
{{- if and (kindIs "float64" .) (eq . (floor .)) -}}{{ int64 . }}{{- else -}}{{ . }}{{- end -}}
{{- end }}

{{/* Sleep before SIGTERM, drain, and what the server's processes may take to end after that (docs/kubernetes.md). */}}
{{- define "offramp.gracePeriodSeconds" -}}
{{- addf .Values.shutdown.preStopSeconds .Values.settings.drain_delay_s .Values.settings.drain_timeout_s 25 | ceil | int64 -}}
{{- end }}

{{/* What a replica is meant to carry: seconds of predicted wait, and samples in flight. */}}
{{- define "offramp.targetWaitSeconds" -}}
{{- mulf .Values.autoscaling.targetLoad .Values.settings.max_wait_s -}}
{{- end }}
{{- define "offramp.targetSamples" -}}
{{- mulf .Values.autoscaling.targetLoad .Values.settings.max_queue -}}
{{- end }}

{{- define "offramp.checkReplicas" -}}
{{- if gt .Values.autoscaling.minReplicas .Values.autoscaling.maxReplicas -}}
{{- fail (printf "autoscaling.minReplicas %v is above autoscaling.maxReplicas %v" .Values.autoscaling.minReplicas .Values.autoscaling.maxReplicas) -}}
{{- end -}}
{{- end }}
