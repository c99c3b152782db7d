-- What of latency a script can do at all: the start of a request and the time to the first byte of its response, as
-- dynamic metadata. It is not called at a request's end, and has neither metrics nor attributes.

local function now(handle)
  return tonumber(handle:timestampString(EnvoyTimestampResolution.MICROSECOND))
end

function envoy_on_request(handle)
  handle:streamInfo():dynamicMetadata():set("latency", "start_us", now(handle))
end

function envoy_on_response(handle)
  local metadata = handle:streamInfo():dynamicMetadata()
  local latency = metadata:get("latency")
  if latency then
    metadata:set("latency", "latency.ttfb_us", string.format("%d", now(handle) - latency["start_us"]))
  end
end
