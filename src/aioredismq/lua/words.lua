-- words: how many field names and values a script passes on at once. `unpack` breaks at some 8000; ours
-- have half of that at most, what others have written may have more.
local MOST_WORDS = 7000
