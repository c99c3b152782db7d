-- Iterates over the headers of a request and does nothing with them: the least that any script has to do which cleans
-- them.

function envoy_on_request(handle)
  local length = 0
  for name, value in pairs(handle:headers()) do
    length = length + #value
  end
end
