package codec

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"unicode/utf16"

	"pgregory.net/rapid"
)

// Text comes out as it went in, or is rejected: of two texts that JSON writes in UTF-16
// escapes, each is either valid and itself, or refused.
func TestTextIsNeverRepaired(t *testing.T) {
	s := mustParse(t, `{"type":"record","name":"R","fields":[{"name":"id","type":"string"},{"name":"m","type":{"type":"map","values":"string"}}]}`)
	units := rapid.OneOf(rapid.SampledFrom([]uint16{0xd800, 0xdbff, 0xdc00, 0xdfff, 0xfffd, 'a', '\\', '"', 0x2028}), rapid.Uint16())
	rapid.Check(t, func(t *rapid.T) {
		id := rapid.SliceOfN(units, 0, 5).Draw(t, "units")
		var escaped strings.Builder
		for _, u := range id {
			if u >= 'a' && u <= 'z' && rapid.Bool().Draw(t, "bare") {
				escaped.WriteByte(byte(u))
			} else if hex := fmt.Sprintf(`\u%04x`, u); rapid.Bool().Draw(t, "upper case") {
				escaped.WriteString(`\u` + strings.ToUpper(hex[2:]))
			} else {
				escaped.WriteString(hex)
			}
		}
		text := []byte(`{"id":"` + escaped.String() + `","m":{"` + escaped.String() + `":"\\ud800"}}`)
		want := string(utf16.Decode(id))
		valid := string(utf16.Decode(utf16.Encode([]rune(want)))) == want && len(utf16.Encode([]rune(want))) == len(id)
		for i, r := range utf16.Encode([]rune(want)) {
			valid = valid && i < len(id) && r == id[i]
		}
		var j JSON
		err := j.Parse(text)
		if (err == nil) != valid || (CheckJSON(text) == nil) != valid {
			t.Fatalf("%s: Parse returns %v, CheckJSON %v", text, err, CheckJSON(text))
		}
		if !valid {
			if !strings.Contains(err.Error(), "is half of a surrogate pair") || !strings.HasPrefix(err.Error(), "column ") {
				t.Fatalf("%s: %v", text, err)
			}
			return
		}
		if got, _ := j.Text("id"); string(got) != want {
			t.Fatalf("%s: the id is %q", text, got)
		}
		body, err := j.AppendAvro(nil, s)
		if err != nil {
			t.Fatal(err)
		}
		out, err := AppendJSON(nil, s.Root(), body)
		if err != nil {
			t.Fatal(err)
		}
		var back struct {
			ID string            `json:"id"`
			M  map[string]string `json:"m"`
		}
		if err := json.Unmarshal(out, &back); err != nil || back.ID != want || len(back.M) != 1 || back.M[want] != `\ud800` {
			t.Fatalf("%s comes back as %s", text, out)
		}
	})
}

func TestInvalidUnicodeIsLocated(t *testing.T) {
	for text, want := range map[string]string{
		"{\"a\":\"\xff\"}":    "column 7: not UTF-8: byte 0xff",
		`{"a":"\ud800"}`:      `column 7: not Unicode: \ud800 is half of a surrogate pair`,
		`{"a":"xy\uDBFFz"}`:   `column 9: not Unicode: \uDBFF is half of a surrogate pair`,
		`{"\udc00":1}`:        `column 3: not Unicode: \udc00 is half of a surrogate pair`,
		`["\ud83d\ude00\ud8"`: "column 19: invalid character '\"' in \\u hexadecimal character escape",
		`["\ud83d\u0041"]`:    `column 3: not Unicode: \ud83d is half of a surrogate pair`,
		`["\ud83d\\ude00"]`:   `column 3: not Unicode: \ud83d is half of a surrogate pair`,
	} {
		if err := new(JSON).Parse([]byte(text)); err == nil || err.Error() != want {
			t.Errorf("%q: got %v, want %s", text, err, want)
		}
	}
	for _, text := range []string{`{"a":"\ud83d\ude00 \\ud800 \ufffd"}`, "\"\ufffd\""} {
		if err := new(JSON).Parse([]byte(text)); err != nil {
			t.Errorf("%q: %v", text, err)
		}
	}
	for text, want := range map[string]string{"": "", "é\ufffd": "", "ab\xc3": "byte 2 (0xc3) is not UTF-8", "\xed\xa0\x80": "byte 0 (0xed) is not UTF-8"} {
		got := ""
		if err := CheckText([]byte(text)); err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}
