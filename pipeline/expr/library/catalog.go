package library

import "slices"

// A Function is the documentation of one function.
type Function struct {
	Group      string // "text", "lists", ...
	Name       string
	Signatures []string // "string.split(string, int) -> list of string"
	Doc        string
	Example    string // an expression that is true
}

// Catalog returns the documentation of all functions. TestEveryFunctionIsDocumented
// finds missing functions; TestExamplesOfFunctionsAreTrue evaluates the examples.
func Catalog() []Function {
	return slices.Concat(fieldFunctions(), textFunctions(), numberFunctions(), timeFunctions(), collectionFunctions(), byteFunctions(), typeFunctions())
}

// macro lists the signatures of a macro: CEL has no declaration of it.
func macro(signatures ...string) []string { return signatures }

func fieldFunctions() []Function {
	return []Function{
		{"fields", "has", macro("has(field) -> bool"), "Whether a nullable field is not null, or a map has the key.", "has({'a': 1}.a) && !has({'a': 1}.b)"},
	}
}

func textFunctions() []Function {
	return []Function{
		{"text", "size", nil, "The number of characters of a string, bytes of bytes, items of a list, or entries of a map.", "'é€'.size() == 2 && size([1, 2, 3]) == 3"},
		{"text", "string", nil, "Converts a value to a string: a timestamp as RFC 3339, a duration in seconds, a decimal with all digits of its scale.", "string(7) == '7' && string(decimal('1.50')) == '1.50' && string(timestamp(0)) == '1970-01-01T00:00:00Z'"},
		{"text", "contains", nil, "Whether the string contains another.", "'millrace'.contains('race')"},
		{"text", "startsWith", nil, "Whether the string starts with another.", "'millrace'.startsWith('mill')"},
		{"text", "endsWith", nil, "Whether the string ends with another.", "'millrace'.endsWith('race')"},
		{"text", "matches", nil, "Whether a part of the string matches a regular expression (RE2). ^ and $ anchor it to the start and the end.", "'o-000001'.matches('^o-[0-9]+$')"},
		{"text", "lowerAscii", nil, "The string with the letters A to Z in lower case.", "'ABC'.lowerAscii() == 'abc'"},
		{"text", "upperAscii", nil, "The string with the letters a to z in upper case.", "'abc'.upperAscii() == 'ABC'"},
		{"text", "trim", nil, "The string without white space at both ends.", "'  a b '.trim() == 'a b'"},
		{"text", "replace", nil, "The string with all occurrences of another string replaced, or with the first n.", "'a-b-c'.replace('-', '') == 'abc' && 'a-b-c'.replace('-', '', 1) == 'ab-c'"},
		{"text", "split", nil, "The parts between separators, at most n parts.", "'a,b,c'.split(',') == ['a', 'b', 'c'] && 'a,b,c'.split(',', 2) == ['a', 'b,c']"},
		{"text", "join", nil, "The strings of a list joined, with an optional separator.", "['a', 'b'].join('-') == 'a-b'"},
		{"text", "substring", nil, "The characters from a start index, up to an optional end index (exclusive). Indexes start at 0.", "'millrace'.substring(4) == 'race' && 'millrace'.substring(0, 4) == 'mill'"},
		{"text", "charAt", nil, "The character at an index. Indexes start at 0.", "'abc'.charAt(1) == 'b'"},
		{"text", "indexOf", nil, "The index of the first occurrence, from an optional start index; -1 if there is none.", "'banana'.indexOf('an') == 1 && 'banana'.indexOf('an', 2) == 3"},
		{"text", "lastIndexOf", nil, "The index of the last occurrence, up to an optional index; -1 if there is none.", "'banana'.lastIndexOf('an') == 3"},
		{"text", "reverse", nil, "The string or list in reverse order.", "'abc'.reverse() == 'cba' && [1, 2].reverse() == [2, 1]"},
		{"text", "format", nil, "A string with values inserted: %s any value, %d a whole number, %.2f, %x, %e. For a timestamp, a layout with its parts inserted, in UTC: %Y %m %d %H %M %S, %L (milliseconds), %f (microseconds), %j (day of the year).",
			"'%s has %d'.format(['u-1', 3]) == 'u-1 has 3' && timestamp(0).format('%Y/%m/%d') == '1970/01/01'"},
		{"text", "strings.quote", nil, "The string in double quotes, with escapes.", `strings.quote('a"b') == '"a\\"b"'`},
	}
}

func numberFunctions() []Function {
	return []Function{
		{"numbers", "int", nil, "Converts to a whole number. A double loses its fraction, a decimal with a fraction is an error, a string is parsed, a timestamp gives seconds since 1970.", "int(2.9) == 2 && int('7') == 7 && int(timestamp(60)) == 60"},
		{"numbers", "double", nil, "Converts to a floating-point number; of a decimal, it keeps about 16 digits.", "double(2) == 2.0 && double('0.5') == 0.5"},
		{"numbers", "decimal", nil, "An exact decimal from a string (digits, with a point before a fraction), from an int, or from the shortest text of a double. Decimals mix with ints, not with doubles. The scale of + and - is the larger one, that of * is the sum.",
			"decimal('0.10') + decimal('0.2') == decimal('0.3') && string(decimal('0.10') * 3) == '0.30'"},
		{"numbers", "div", nil, "The quotient of decimals with the given scale, rounded by the given mode (see round).", "decimal('10').div(3, 2, 'half_up') == decimal('3.33')"},
		{"numbers", "round", nil, "The decimal with the given scale, from 0 to 1000. The modes are half_up, half_even, half_down (to the nearest; a tie away from zero, to the even digit, towards zero), up, down (away from zero, towards zero), ceiling, floor.",
			"decimal('2.345').round(2, 'half_even') == decimal('2.34') && string(decimal('2').round(2, 'up')) == '2.00'"},
		{"numbers", "bool", nil, "Converts the strings true and false to a bool.", "bool('true')"},
		{"numbers", "math.abs", nil, "The absolute value.", "math.abs(-2) == 2"},
		{"numbers", "math.sign", nil, "The sign: -1, 0 or 1.", "math.sign(-2.5) == -1.0"},
		{"numbers", "math.ceil", nil, "Rounds up to a whole number.", "math.ceil(1.2) == 2.0"},
		{"numbers", "math.floor", nil, "Rounds down to a whole number.", "math.floor(1.8) == 1.0"},
		{"numbers", "math.round", nil, "Rounds to the nearest whole number; halves away from zero.", "math.round(2.5) == 3.0"},
		{"numbers", "math.trunc", nil, "Drops the fraction.", "math.trunc(-1.8) == -1.0"},
		{"numbers", "math.sqrt", nil, "The square root.", "math.sqrt(9.0) == 3.0"},
		{"numbers", "math.isNaN", nil, "Whether a double is NaN (not a number).", "!math.isNaN(1.0)"},
		{"numbers", "math.isInf", nil, "Whether a double is infinite.", "math.isInf(1.0 / 0.0)"},
		{"numbers", "math.isFinite", nil, "Whether a double is neither NaN nor infinite.", "math.isFinite(1.0)"},
		{"numbers", "math.greatest", macro("math.greatest(number, ...) -> number", "math.greatest(list of numbers) -> number"), "The greatest of the arguments, or of a list.", "math.greatest(1, 3, 2) == 3 && math.greatest([1.5, 2.5]) == 2.5"},
		{"numbers", "math.least", macro("math.least(number, ...) -> number", "math.least(list of numbers) -> number"), "The least of the arguments, or of a list.", "math.least(1, 3, 2) == 1"},
		{"numbers", "math.bitAnd", nil, "Bitwise and.", "math.bitAnd(6, 3) == 2"},
		{"numbers", "math.bitOr", nil, "Bitwise or.", "math.bitOr(6, 3) == 7"},
		{"numbers", "math.bitXor", nil, "Bitwise exclusive or.", "math.bitXor(6, 3) == 5"},
		{"numbers", "math.bitNot", nil, "Bitwise complement.", "math.bitNot(0) == -1"},
		{"numbers", "math.bitShiftLeft", nil, "Shifts the bits left.", "math.bitShiftLeft(1, 4) == 16"},
		{"numbers", "math.bitShiftRight", nil, "Shifts the bits right and fills with zeros.", "math.bitShiftRight(16, 4) == 1"},
	}
}

func timeFunctions() []Function {
	return []Function{
		{"time", "now", macro("now() -> timestamp"), "The time at which the worker received the event, exact to within 32 events; the same in all stages. Not available in folds, which depend on the events alone.", ""},
		{"time", "timestamp", nil, "A timestamp from RFC 3339, or from seconds since 1970.", "timestamp('1970-01-01T00:01:00Z') == timestamp(60)"},
		{"time", "duration", nil, "A duration from a string: '1h30m', '250ms'.", "duration('1h') + duration('30m') == duration('90m')"},
		{"time", "parseTime", nil, "A timestamp from a string in the given layout, in UTC. For layouts, see format.", "parseTime('31.01.2026', '%d.%m.%Y') == timestamp('2026-01-31T00:00:00Z')"},
		{"time", "truncate", nil, "The start of the second, minute, hour, day, week (from Monday), month, quarter or year, in UTC; or of a window of the given length, counted from 1970.",
			"timestamp('2026-01-31T12:34:56Z').truncate('day') == timestamp('2026-01-31T00:00:00Z') && timestamp(100).truncate(duration('1m')) == timestamp(60)"},
		{"time", "unixMillis", nil, "Milliseconds since 1970.", "unixMillis(timestamp(1)) == 1000"},
		{"time", "fromUnixMillis", nil, "A timestamp from milliseconds since 1970.", "fromUnixMillis(1000) == timestamp(1)"},
		{"time", "getFullYear", nil, "The year, in UTC or in a time zone ('Europe/Paris', '+02:00').", "timestamp(0).getFullYear() == 1970"},
		{"time", "getMonth", nil, "The month, starting at 0.", "timestamp(0).getMonth() == 0"},
		{"time", "getDate", nil, "The day of the month, starting at 1.", "timestamp(0).getDate() == 1"},
		{"time", "getDayOfMonth", nil, "The day of the month, starting at 0.", "timestamp(0).getDayOfMonth() == 0"},
		{"time", "getDayOfWeek", nil, "The day of the week; Sunday is 0.", "timestamp(0).getDayOfWeek() == 4"},
		{"time", "getDayOfYear", nil, "The day of the year, starting at 0.", "timestamp(0).getDayOfYear() == 0"},
		{"time", "getHours", nil, "The hour of a timestamp, or all whole hours of a duration.", "timestamp(7200).getHours() == 2 && duration('50h').getHours() == 50"},
		{"time", "getMinutes", nil, "The minute of a timestamp, or all whole minutes of a duration.", "duration('2h').getMinutes() == 120"},
		{"time", "getSeconds", nil, "The second of a timestamp, or all whole seconds of a duration.", "duration('2m').getSeconds() == 120"},
		{"time", "getMilliseconds", nil, "The milliseconds within the second.", "timestamp('1970-01-01T00:00:00.250Z').getMilliseconds() == 250"},
	}
}

func collectionFunctions() []Function {
	return []Function{
		{"lists and maps", "all", macro("list.all(x, condition) -> bool", "map.all(key, condition) -> bool"), "Whether a condition holds for every item of a list, or every key of a map.", "[1, 2].all(x, x > 0)"},
		{"lists and maps", "exists", macro("list.exists(x, condition) -> bool", "map.exists(key, condition) -> bool"), "Whether a condition holds for at least one item or key.", "[1, 2].exists(x, x > 1)"},
		{"lists and maps", "exists_one", macro("list.exists_one(x, condition) -> bool"), "Whether a condition holds for exactly one item.", "[1, 2].exists_one(x, x > 1)"},
		{"lists and maps", "filter", macro("list.filter(x, condition) -> list", "map.filter(key, condition) -> list of keys"), "The items or keys for which a condition holds.", "[1, 2, 3].filter(x, x > 1) == [2, 3]"},
		{"lists and maps", "map", macro("list.map(x, value) -> list", "list.map(x, condition, value) -> list", "map.map(key, value) -> list"), "The list of a value for every item, or for the items for which a condition holds. A map is iterated in the order of its keys.",
			"[1, 2].map(x, x * 2) == [2, 4] && {'b': 1, 'a': 2}.map(k, k) == ['a', 'b']"},
		{"lists and maps", "transformList", macro("list.transformList(index, x, value) -> list", "map.transformList(key, x, value) -> list"), "Like map, with the index or the key as an additional variable.", "['a', 'b'].transformList(i, x, string(i) + x) == ['0a', '1b']"},
		{"lists and maps", "transformMap", macro("map.transformMap(key, x, value) -> map", "map.transformMap(key, x, condition, value) -> map"), "A map with a new value for every entry, or for the entries for which a condition holds.",
			"{'a': 1, 'b': 2}.transformMap(k, v, v > 1, v * 10) == {'b': 20}"},
		{"lists and maps", "with", nil, "A copy of the map with one entry added or replaced.", "{'a': 1}.with('b', 2) == {'a': 1, 'b': 2}"},
		{"lists and maps", "without", nil, "A copy of the map without one key.", "{'a': 1, 'b': 2}.without('b') == {'a': 1}"},
		{"lists and maps", "first", nil, "The first item. An empty list is an error.", "[1, 2].first() == 1"},
		{"lists and maps", "last", nil, "The last item. An empty list is an error.", "[1, 2].last() == 2"},
		{"lists and maps", "slice", nil, "The items from a start index up to an end index (exclusive). Indexes start at 0.", "[1, 2, 3].slice(0, 2) == [1, 2]"},
		{"lists and maps", "sort", nil, "The items in ascending order.", "[3, 1, 2].sort() == [1, 2, 3]"},
		{"lists and maps", "sortBy", macro("list.sortBy(x, value) -> list"), "The items in ascending order of a value computed for each.", "['bb', 'a'].sortBy(x, x.size()) == ['a', 'bb']"},
		{"lists and maps", "sum", nil, "The sum of the numbers, exact for decimals; 0 for an empty list.", "[1, 2].sum() == 3 && [decimal('0.1'), decimal('0.2')].sum() == decimal('0.3')"},
		{"lists and maps", "distinct", nil, "The list without duplicates.", "[1, 2, 1].distinct() == [1, 2]"},
		{"lists and maps", "flatten", nil, "The items of the lists in a list, with an optional depth.", "[[1], [2, 3]].flatten() == [1, 2, 3]"},
		{"lists and maps", "lists.range", nil, "The numbers from 0 up to n (exclusive).", "lists.range(3) == [0, 1, 2]"},
		{"lists and maps", "sets.contains", nil, "Whether the first list contains every item of the second.", "sets.contains([1, 2, 3], [3, 1])"},
		{"lists and maps", "sets.equivalent", nil, "Whether both lists contain the same items; order and duplicates do not matter.", "sets.equivalent([1, 2], [2, 1, 1])"},
		{"lists and maps", "sets.intersects", nil, "Whether the lists have an item in common.", "sets.intersects([1, 2], [2, 3])"},
	}
}

func byteFunctions() []Function {
	return []Function{
		{"bytes and identity", "bytes", nil, "The UTF-8 encoding of a string.", "bytes('ab') == b'ab'"},
		{"bytes and identity", "base64.encode", nil, "Encodes bytes as base64.", "base64.encode(b'ab') == 'YWI='"},
		{"bytes and identity", "base64.decode", nil, "Decodes base64 to bytes.", "base64.decode('YWI=') == b'ab'"},
		{"bytes and identity", "hex.encode", nil, "Encodes bytes as hexadecimal digits.", "hex.encode(b'ab') == '6162'"},
		{"bytes and identity", "hex.decode", nil, "Decodes hexadecimal digits to bytes.", "hex.decode('6162') == b'ab'"},
		{"bytes and identity", "sha256", nil, "The SHA-256 hash in hexadecimal digits.", "sha256('abc').startsWith('ba7816bf8f01cfea')"},
		{"bytes and identity", "md5", nil, "The MD5 hash in hexadecimal digits, for compatibility only; it is not secure.", "md5('abc') == '900150983cd24fb0d6963f7d28e17f72'"},
		{"bytes and identity", "crc32", nil, "The CRC-32 (IEEE) checksum in hexadecimal digits.", "crc32('abc') == '352441c2'"},
		{"bytes and identity", "xxhash", nil, "The 64-bit xxHash in hexadecimal digits.", "xxhash('abc') == '44bc2cf5ad770999'"},
		{"bytes and identity", "hash", nil, "A pseudo-random number from 0 up, the same for the same input; for sampling and partitioning: hash(id) % 100 < 5.", "hash('abc') == hash(b'abc') && hash('abc') >= 0"},
		{"bytes and identity", "uuid5", nil, "The version 5 UUID of a name in a namespace: a UUID, or dns, url, oid, x500. The same name gives the same UUID.", "uuid5('dns', 'www.example.com') == '2ed6657d-e927-568b-95e1-2665a8aea6a2'"},
		{"bytes and identity", "isUuid", nil, "Whether the string is a UUID.", "'2ed6657d-e927-568b-95e1-2665a8aea6a2'.isUuid()"},
	}
}

func typeFunctions() []Function {
	return []Function{
		{"types", "dyn", nil, "The same value, with its type checked at run time only.", "dyn(1) == 1"},
		{"types", "type", nil, "The type of a value.", "type(1) == int"},
	}
}
