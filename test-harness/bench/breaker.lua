-- What is often written in place of a circuit breaker: of each worker by itself, over a window that starts anew each ten
-- seconds, by the share of 5xx, and half open for whoever comes first. Thresholds are in the script.

local window, total, errors, open_until = 0, 0, 0, 0

local function seconds(handle)
  return math.floor(tonumber(handle:timestamp()) / 1000)
end

function envoy_on_request(handle)
  local now = seconds(handle)
  if now < open_until then
    handle:respond({ [":status"] = "503", ["retry-after"] = tostring(open_until - now), ["x-circuit-state"] = "open" }, "")
  end
end

function envoy_on_response(handle)
  local now = seconds(handle)
  if now - window >= 10 then
    window, total, errors = now, 0, 0
  end
  total = total + 1
  if tonumber(handle:headers():get(":status")) >= 500 then
    errors = errors + 1
    if total >= 10 and errors / total >= 0.5 then
      open_until, window = now + 60, 0
    end
  end
end
