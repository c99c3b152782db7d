-- What trace-id does with its default configuration, as far as Envoy's Lua filter can: for the benchmark.
-- The same test cases run against both (tests/lua_twin.rs). Left out, to its advantage: formats other than W3C, the
-- metrics, cutting a tracestate of over 4096 bytes, and following the proxy's own tracer, for which a script has no
-- callback.

local HEX16 = string.rep("[0-9a-f]", 16)
local PATTERN = "^[ \t]*([0-9a-f][0-9a-f])%-(" .. HEX16 .. HEX16 .. ")%-(" .. HEX16 .. ")%-([0-9a-f][0-9a-f])(.-)[ \t]*$"
local ZERO_TRACE, ZERO_SPAN = string.rep("0", 32), string.rep("0", 16)
local random, format = math.random, string.format

-- Every worker runs this for itself, in the same second: with the time alone, all would make the same ids.
math.randomseed(os.time() + tonumber(tostring({}):match("0x(%x+)"), 16))

local function hex64()
  return format("%08x%08x", random(0, 0x7fffffff) * 2 + random(0, 1), random(0, 0x7fffffff) * 2 + random(0, 1))
end

-- Members of `key=value`, at most 32; gives the text to send on, or nil for none.
local function tracestate(text)
  local members = 0
  for member in text:gmatch("[^,]+") do
    local key, value = member:match("^[ \t]*([a-z0-9][a-z0-9_%-%*/@]*)=([\32-\43\45-\60\62-\126]*)[ \t]*$")
    if key then
      value = value:match("^(.-) *$")
      if #key > 256 or #value < 1 or #value > 256 then return nil end
      members = members + 1
    elseif not member:match("^[ \t]*$") then
      return nil
    end
  end
  if members == 0 or members > 32 then return nil end
  return text
end

function envoy_on_request(handle)
  local headers = handle:headers()
  local came = headers:get("traceparent")
  local version, trace_id, parent, flags, rest
  if came then
    version, trace_id, parent, flags, rest = came:match(PATTERN)
    if not version or version == "ff" or trace_id == ZERO_TRACE or parent == ZERO_SPAN
      or (version == "00" and rest ~= "") or (rest ~= "" and rest:sub(1, 1) ~= "-") then
      trace_id = nil
    end
  end
  local state = headers:get("tracestate")
  local out
  if trace_id then
    local bits = tonumber(flags, 16) % 4
    flags = format("%02x", bits)
    if state and not tracestate(state) then headers:remove("tracestate") end
  else
    trace_id, parent, flags = hex64() .. hex64(), nil, "03"
    if state then headers:remove("tracestate") end
  end
  local span_id = hex64()
  headers:replace("traceparent", "00-" .. trace_id .. "-" .. span_id .. "-" .. flags)

  local metadata = handle:streamInfo():dynamicMetadata()
  metadata:set("trace", "trace_id", trace_id)
  metadata:set("trace", "span_id", span_id)
  metadata:set("trace", "trace_sampled", flags == "01" or flags == "03")
  if parent then metadata:set("trace", "parent_span_id", parent) end
  metadata:set("trace", "start_time_us", handle:timestampString(EnvoyTimestampResolution.MICROSECOND))
end
