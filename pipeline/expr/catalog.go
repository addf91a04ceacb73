package expr

import (
	"fmt"
	"strings"

	"cel.dev/cel-go/common/decls"
)

// A Function describes one function for those who write expressions.
type Function struct {
	Group      string // "text", "lists", ...
	Name       string
	Signatures []string // "string.split(string, int) -> list of string"
	Doc        string
	Example    string // an expression that is true
}

// Functions describes everything that an expression can call, in groups.
func Functions() []Function {
	env, err := NewEnv()
	if err != nil {
		panic(err) // the libraries do not fit together: every use would fail, and every test does
	}
	out := catalog()
	for i := range out {
		f := &out[i]
		if f.Signatures == nil {
			f.Signatures = signatures(env.cel.Functions()[f.Name])
		}
	}
	return out
}

// signatures returns the ways to call a function, without those for unsigned
// numbers, which no event has.
func signatures(decl *decls.FunctionDecl) []string {
	if decl == nil {
		return nil
	}
	var out []string
	for _, o := range decl.OverloadDecls() {
		if s := signature(decl.Name(), o); !strings.Contains(s, "uint") {
			out = append(out, s+" -> "+strings.ReplaceAll(celWord(o.ResultType()), "value of any type", "value"))
		}
	}
	return out
}

// signature returns "string.split(string)", or "sha256(bytes)".
func signature(name string, o *decls.OverloadDecl) string {
	var args []string
	for _, a := range o.ArgTypes() {
		args = append(args, strings.ReplaceAll(celWord(a), "value of any type", "value"))
	}
	name = strings.Replace(strings.Replace(name, "math.@max", "math.greatest", 1), "math.@min", "math.least", 1)
	if !o.IsMemberFunction() {
		return fmt.Sprintf("%s(%s)", name, strings.Join(args, ", "))
	}
	target := args[0]
	if strings.Contains(target, " ") {
		target = target[:strings.IndexByte(target, ' ')] // list, map
	}
	return fmt.Sprintf("%s.%s(%s)", target, name, strings.Join(args[1:], ", "))
}

// catalog is the description of all functions. A test evaluates the examples,
// and finds what is missing.
func catalog() []Function {
	macro := func(signatures ...string) []string { return signatures }
	return []Function{
		{"fields", "has", macro("has(field) -> bool"), "Whether a nullable field is not null, or a map has the key.", "has({'a': 1}.a) && !has({'a': 1}.b)"},

		{"text", "size", nil, "Characters of a text, bytes of bytes, items of a list, entries of a map.", "'é€'.size() == 2 && size([1, 2, 3]) == 3"},
		{"text", "string", nil, "As text: a time in RFC 3339, a duration in seconds.", "string(7) == '7' && string(timestamp(0)) == '1970-01-01T00:00:00Z'"},
		{"text", "contains", nil, "Whether the text has the other in it.", "'millrace'.contains('race')"},
		{"text", "startsWith", nil, "Whether the text begins with the other.", "'millrace'.startsWith('mill')"},
		{"text", "endsWith", nil, "Whether the text ends with the other.", "'millrace'.endsWith('race')"},
		{"text", "matches", nil, "Whether a part of the text matches a regular expression (RE2); ^ and $ bind it to the whole.", "'o-000001'.matches('^o-[0-9]+$')"},
		{"text", "lowerAscii", nil, "The letters A to Z as a to z.", "'ABC'.lowerAscii() == 'abc'"},
		{"text", "upperAscii", nil, "The letters a to z as A to Z.", "'abc'.upperAscii() == 'ABC'"},
		{"text", "trim", nil, "Without the white space at both ends.", "'  a b '.trim() == 'a b'"},
		{"text", "replace", nil, "With every occurrence of a text replaced, or the first n.", "'a-b-c'.replace('-', '') == 'abc' && 'a-b-c'.replace('-', '', 1) == 'ab-c'"},
		{"text", "split", nil, "The parts between separators, at most n.", "'a,b,c'.split(',') == ['a', 'b', 'c'] && 'a,b,c'.split(',', 2) == ['a', 'b,c']"},
		{"text", "join", nil, "The texts of a list as one, with a separator between them.", "['a', 'b'].join('-') == 'a-b'"},
		{"text", "substring", nil, "The characters from one place on, or up to another; the first is 0.", "'millrace'.substring(4) == 'race' && 'millrace'.substring(0, 4) == 'mill'"},
		{"text", "charAt", nil, "One character; the first is 0.", "'abc'.charAt(1) == 'b'"},
		{"text", "indexOf", nil, "Where a text is first found, from a place on; -1 if nowhere.", "'banana'.indexOf('an') == 1 && 'banana'.indexOf('an', 2) == 3"},
		{"text", "lastIndexOf", nil, "Where a text is last found, up to a place; -1 if nowhere.", "'banana'.lastIndexOf('an') == 3"},
		{"text", "reverse", nil, "From the last to the first.", "'abc'.reverse() == 'cba' && [1, 2].reverse() == [2, 1]"},
		{"text", "format", nil, "A text with values put in: %s anything, %d a whole number, %.2f, %x, %e. A time with its parts put in: %Y %m %d %H %M %S, %L (milliseconds), %f (microseconds), %j (day of the year), in UTC.",
			"'%s has %d'.format(['u-1', 3]) == 'u-1 has 3' && timestamp(0).format('%Y/%m/%d') == '1970/01/01'"},
		{"text", "strings.quote", nil, "In double quotes, with escapes.", `strings.quote('a"b') == '"a\\"b"'`},

		{"numbers", "int", nil, "As a whole number: of a double, cut off; of a text, read; of a time, its seconds since 1970.", "int(2.9) == 2 && int('7') == 7 && int(timestamp(60)) == 60"},
		{"numbers", "double", nil, "As a number with a fraction.", "double(2) == 2.0 && double('0.5') == 0.5"},
		{"numbers", "bool", nil, "The text true or false as a bool.", "bool('true')"},
		{"numbers", "math.abs", nil, "Without its sign.", "math.abs(-2) == 2"},
		{"numbers", "math.sign", nil, "-1, 0 or 1.", "math.sign(-2.5) == -1.0"},
		{"numbers", "math.ceil", nil, "The next whole number up.", "math.ceil(1.2) == 2.0"},
		{"numbers", "math.floor", nil, "The next whole number down.", "math.floor(1.8) == 1.0"},
		{"numbers", "math.round", nil, "The nearest whole number; halves away from zero.", "math.round(2.5) == 3.0"},
		{"numbers", "math.trunc", nil, "Without the fraction.", "math.trunc(-1.8) == -1.0"},
		{"numbers", "math.sqrt", nil, "The square root.", "math.sqrt(9.0) == 3.0"},
		{"numbers", "math.isNaN", nil, "Whether it is not a number.", "!math.isNaN(1.0)"},
		{"numbers", "math.isInf", nil, "Whether it is infinite.", "math.isInf(1.0 / 0.0)"},
		{"numbers", "math.isFinite", nil, "Whether it is a number, and not infinite.", "math.isFinite(1.0)"},
		{"numbers", "math.greatest", macro("math.greatest(number, ...) -> number", "math.greatest(list of numbers) -> number"), "The greatest of some numbers, or of a list.", "math.greatest(1, 3, 2) == 3 && math.greatest([1.5, 2.5]) == 2.5"},
		{"numbers", "math.least", macro("math.least(number, ...) -> number", "math.least(list of numbers) -> number"), "The least of some numbers, or of a list.", "math.least(1, 3, 2) == 1"},
		{"numbers", "math.bitAnd", nil, "Bits that are set in both.", "math.bitAnd(6, 3) == 2"},
		{"numbers", "math.bitOr", nil, "Bits that are set in either.", "math.bitOr(6, 3) == 7"},
		{"numbers", "math.bitXor", nil, "Bits that are set in one.", "math.bitXor(6, 3) == 5"},
		{"numbers", "math.bitNot", nil, "Bits that are not set.", "math.bitNot(0) == -1"},
		{"numbers", "math.bitShiftLeft", nil, "Moved up by some bits.", "math.bitShiftLeft(1, 4) == 16"},
		{"numbers", "math.bitShiftRight", nil, "Moved down by some bits; zeros follow.", "math.bitShiftRight(16, 4) == 1"},

		{"time", "now", macro("now() -> timestamp"), "When the worker took up the event, to within 32 events; the same in all stages. Not in folds, which follow from the events alone.", ""},
		{"time", "timestamp", nil, "A time from RFC 3339, or from seconds since 1970.", "timestamp('1970-01-01T00:01:00Z') == timestamp(60)"},
		{"time", "duration", nil, "A length of time from text: '1h30m', '250ms'.", "duration('1h') + duration('30m') == duration('90m')"},
		{"time", "parseTime", nil, "A time from a text in the given form; see format. It is UTC.", "parseTime('31.01.2026', '%d.%m.%Y') == timestamp('2026-01-31T00:00:00Z')"},
		{"time", "truncate", nil, "When the second, minute, hour, day, week (from Monday), month, quarter or year began, in UTC; or a window of some length, counted from 1970.",
			"timestamp('2026-01-31T12:34:56Z').truncate('day') == timestamp('2026-01-31T00:00:00Z') && timestamp(100).truncate(duration('1m')) == timestamp(60)"},
		{"time", "unixMillis", nil, "Milliseconds since 1970.", "unixMillis(timestamp(1)) == 1000"},
		{"time", "fromUnixMillis", nil, "A time from milliseconds since 1970.", "fromUnixMillis(1000) == timestamp(1)"},
		{"time", "getFullYear", nil, "The year, in UTC or a zone ('Europe/Paris', '+02:00').", "timestamp(0).getFullYear() == 1970"},
		{"time", "getMonth", nil, "The month, from 0.", "timestamp(0).getMonth() == 0"},
		{"time", "getDate", nil, "The day of the month, from 1.", "timestamp(0).getDate() == 1"},
		{"time", "getDayOfMonth", nil, "The day of the month, from 0.", "timestamp(0).getDayOfMonth() == 0"},
		{"time", "getDayOfWeek", nil, "The day of the week, from 0, a Sunday.", "timestamp(0).getDayOfWeek() == 4"},
		{"time", "getDayOfYear", nil, "The day of the year, from 0.", "timestamp(0).getDayOfYear() == 0"},
		{"time", "getHours", nil, "The hour of a time; all hours of a duration.", "timestamp(7200).getHours() == 2 && duration('50h').getHours() == 50"},
		{"time", "getMinutes", nil, "The minute of a time; all minutes of a duration.", "duration('2h').getMinutes() == 120"},
		{"time", "getSeconds", nil, "The second of a time; all seconds of a duration.", "duration('2m').getSeconds() == 120"},
		{"time", "getMilliseconds", nil, "The milliseconds within the second.", "timestamp('1970-01-01T00:00:00.250Z').getMilliseconds() == 250"},

		{"lists and maps", "all", macro("list.all(x, condition) -> bool", "map.all(key, condition) -> bool"), "Whether a condition holds for every item, or key.", "[1, 2].all(x, x > 0)"},
		{"lists and maps", "exists", macro("list.exists(x, condition) -> bool", "map.exists(key, condition) -> bool"), "Whether it holds for one at least.", "[1, 2].exists(x, x > 1)"},
		{"lists and maps", "exists_one", macro("list.exists_one(x, condition) -> bool"), "Whether it holds for one and no other.", "[1, 2].exists_one(x, x > 1)"},
		{"lists and maps", "filter", macro("list.filter(x, condition) -> list", "map.filter(key, condition) -> list of keys"), "The items for which a condition holds.", "[1, 2, 3].filter(x, x > 1) == [2, 3]"},
		{"lists and maps", "map", macro("list.map(x, value) -> list", "list.map(x, condition, value) -> list", "map.map(key, value) -> list"), "A value for every item, or for those for which a condition holds. A map is gone through in the order of its keys.",
			"[1, 2].map(x, x * 2) == [2, 4] && {'b': 1, 'a': 2}.map(k, k) == ['a', 'b']"},
		{"lists and maps", "transformList", macro("list.transformList(index, x, value) -> list", "map.transformList(key, x, value) -> list"), "As map, with the index or the key beside the item.", "['a', 'b'].transformList(i, x, string(i) + x) == ['0a', '1b']"},
		{"lists and maps", "transformMap", macro("map.transformMap(key, x, value) -> map", "map.transformMap(key, x, condition, value) -> map"), "A map with a value for every entry, or for those for which a condition holds.",
			"{'a': 1, 'b': 2}.transformMap(k, v, v > 1, v * 10) == {'b': 20}"},
		{"lists and maps", "with", nil, "The map with a value under a key.", "{'a': 1}.with('b', 2) == {'a': 1, 'b': 2}"},
		{"lists and maps", "without", nil, "The map without a key.", "{'a': 1, 'b': 2}.without('b') == {'a': 1}"},
		{"lists and maps", "first", nil, "The first item; an empty list has none, which is an error.", "[1, 2].first() == 1"},
		{"lists and maps", "last", nil, "The last item; an empty list has none, which is an error.", "[1, 2].last() == 2"},
		{"lists and maps", "slice", nil, "The items from one place up to another; the first is 0.", "[1, 2, 3].slice(0, 2) == [1, 2]"},
		{"lists and maps", "sort", nil, "In order.", "[3, 1, 2].sort() == [1, 2, 3]"},
		{"lists and maps", "sortBy", macro("list.sortBy(x, value) -> list"), "In the order of a value of each item.", "['bb', 'a'].sortBy(x, x.size()) == ['a', 'bb']"},
		{"lists and maps", "distinct", nil, "Without the items that were there before.", "[1, 2, 1].distinct() == [1, 2]"},
		{"lists and maps", "flatten", nil, "The items of the lists in a list, or of those n deep.", "[[1], [2, 3]].flatten() == [1, 2, 3]"},
		{"lists and maps", "lists.range", nil, "The numbers from 0 up to n, which is not among them.", "lists.range(3) == [0, 1, 2]"},
		{"lists and maps", "sets.contains", nil, "Whether the first list has all that the second has.", "sets.contains([1, 2, 3], [3, 1])"},
		{"lists and maps", "sets.equivalent", nil, "Whether both have the same, in whatever order and number.", "sets.equivalent([1, 2], [2, 1, 1])"},
		{"lists and maps", "sets.intersects", nil, "Whether they have something in common.", "sets.intersects([1, 2], [2, 3])"},

		{"bytes and identity", "bytes", nil, "The UTF-8 of a text.", "bytes('ab') == b'ab'"},
		{"bytes and identity", "base64.encode", nil, "Bytes as base64.", "base64.encode(b'ab') == 'YWI='"},
		{"bytes and identity", "base64.decode", nil, "Bytes from base64.", "base64.decode('YWI=') == b'ab'"},
		{"bytes and identity", "hex.encode", nil, "Bytes as hexadecimal digits.", "hex.encode(b'ab') == '6162'"},
		{"bytes and identity", "hex.decode", nil, "Bytes from hexadecimal digits.", "hex.decode('6162') == b'ab'"},
		{"bytes and identity", "sha256", nil, "SHA-256 in hexadecimal digits.", "sha256('abc').startsWith('ba7816bf8f01cfea')"},
		{"bytes and identity", "md5", nil, "MD5 in hexadecimal digits, to agree with others; it protects nothing.", "md5('abc') == '900150983cd24fb0d6963f7d28e17f72'"},
		{"bytes and identity", "crc32", nil, "CRC-32 (IEEE) in hexadecimal digits.", "crc32('abc') == '352441c2'"},
		{"bytes and identity", "xxhash", nil, "xxHash, 64 bits, in hexadecimal digits.", "xxhash('abc') == '44bc2cf5ad770999'"},
		{"bytes and identity", "hash", nil, "A number from 0 up that looks random and is the same each time, to sample or divide: hash(id) % 100 < 5.", "hash('abc') == hash(b'abc') && hash('abc') >= 0"},
		{"bytes and identity", "uuid5", nil, "The UUID (version 5) of a name in a name space: a UUID, or dns, url, oid, x500. The same name gives the same UUID.", "uuid5('dns', 'www.example.com') == '2ed6657d-e927-568b-95e1-2665a8aea6a2'"},
		{"bytes and identity", "isUuid", nil, "Whether the text is a UUID.", "'2ed6657d-e927-568b-95e1-2665a8aea6a2'.isUuid()"},

		{"types", "dyn", nil, "The same value, whose type is only checked when it runs.", "dyn(1) == 1"},
		{"types", "type", nil, "The type of a value.", "type(1) == int"},
	}
}
