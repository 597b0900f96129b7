-- Gives a request's model the name that the server knows it by. Of the body, the bytes between two quotes are
-- replaced and no others: a filter that parsed and wrote JSON would order the keys of a tool's schema anew, and with
-- them the prompt.

-- Where the string that begins behind `start` ends: the place of its closing quote; nil where it has none.
local function closing(text, start)
  local at = start
  while true do
    at = text:find('["\\]', at)
    if not at then return nil end
    if text:byte(at) == 34 then return at end
    at = at + 2
  end
end

-- First and last byte of the value of the outermost key "model"; of the last one, as JSON's parsers read it.
local function model(text)
  local at, depth, first, last = 1, 0, nil, nil
  while true do
    at = text:find('[%[%]{}"]', at)
    if not at then return first, last end
    local byte = text:byte(at)
    if byte == 34 then
      local close = closing(text, at + 1)
      if not close then return nil, nil end
      if depth == 1 and text:sub(at + 1, close - 1) == "model" then
        local _, opening = text:find('^%s*:%s*"', close + 1)
        if opening then
          local ends = closing(text, opening + 1)
          if not ends then return nil, nil end
          first, last, close = opening + 1, ends - 1, ends
        end
      end
      at = close + 1
    else
      depth = depth + ((byte == 91 or byte == 123) and 1 or -1)
      at = at + 1
    end
  end
end

function envoy_on_request(handle)
  if handle:headers():get(":method") ~= "POST" then return end
  local body = handle:body()
  if not body or body:length() == 0 then return end
  local text = body:getBytes(0, body:length())
  local first, last = model(text)
  local name = first and NAMES[text:sub(first, last)]
  if name then
    body:setBytes(text:sub(1, first - 1) .. name .. text:sub(last + 1))
  end
end
