-- Sends the requests of a folder, 000000.http and on, in order and round again; prints the figures as one JSON line.
local requests, sent = {}, 0

function init(args)
   while true do
      local file = io.open(string.format("%s/%06d.http", args[1], #requests), "rb")
      if not file then break end
      requests[#requests + 1] = file:read("*a")
      file:close()
   end
end

function request()
   sent = sent % #requests + 1
   return requests[sent]
end

function done(summary, latency, _)
   local errors = summary.errors
   io.write(string.format(
      '{"requests": %d, "refused": %d, "broken": %d, "duration_us": %d, "p50_us": %d, "p95_us": %d, "p99_us": %d}\n',
      summary.requests, errors.status, errors.connect + errors.read + errors.write + errors.timeout,
      summary.duration, latency:percentile(50), latency:percentile(95), latency:percentile(99)))
end
