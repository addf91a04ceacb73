package codec

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"millrace/pipeline"
)

// deepType is a random recursive record: the way from a node to the next one, and the
// number of levels of that way.
type deepType struct {
	way    string // type of the field next, with %s for the record inside of it
	inside int    // levels from a node to the next one
	open   string // Avro before the next node
	shut   string // Avro after it
	none   string // Avro without a next node
}

var deepTypes = []deepType{
	{`["null",%s]`, 2, "\x02", "", "\x00"},
	{`{"type":"array","items":%s}`, 2, "\x02", "\x00", "\x00"},
	{`{"type":"map","values":%s}`, 2, "\x02\x02k", "\x00", "\x00"},
	{`{"type":"array","items":["null",%s]}`, 3, "\x02\x02", "\x00", "\x00"},
	{`["null",{"type":"record","name":"Box","fields":[{"name":"in","type":{"type":"map","values":%s}}]}]`, 4, "\x02\x02\x02k", "\x00", "\x00"},
}

// All readers agree about the depth of a value in its record, and all
// that one of them writes can be read by the others.
func TestReadersAndWritersCountTheSameDepth(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		typ := rapid.SampledFrom(deepTypes).Draw(t, "type")
		records := rapid.IntRange(0, 3).Draw(t, "records around")
		nodes := rapid.IntRange(1, 70).Draw(t, "nodes")
		node := `{"type":"record","name":"N","fields":[{"name":"v","type":"int"},{"name":"next","type":` + fmt.Sprintf(strings.Replace(typ.way, "Box", "Inner", 1), `"N"`) + `}]}`
		// next is on the second level below the root, and below each record around it.
		text := `{"type":"record","name":"R","fields":[{"name":"a","type":"string"},{"name":"next","type":` + fmt.Sprintf(typ.way, node) + `}]}`
		for i := range records {
			text = fmt.Sprintf(`{"type":"record","name":"R%d","fields":[{"name":"r","type":%s},{"name":"b","type":"string"}]}`, i, text)
		}
		s, err := ParseSchema(text)
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		body := "\x02x" + strings.Repeat(typ.open+"\x0e", nodes) + typ.none + strings.Repeat(typ.shut, nodes) + strings.Repeat("\x02y", records)
		// The deepest value is a missing next: null in a union is one level below it.
		depth := records + typ.inside*nodes + 1
		if strings.HasPrefix(typ.way, "[") {
			depth++
		}
		checkAgreement(t, s, []byte(body), depth <= maxWalkDepth)
	})
}

func checkAgreement(t *rapid.T, s *Schema, body []byte, want bool) {
	check := func(who string, err error) {
		if (err == nil) != want {
			t.Fatalf("%s\n%x: %s returns %v, want accepted = %v", s, body, who, err, want)
		}
	}
	check("Validate", Validate(s.Root(), body))
	check("CheckWritten", s.CheckWritten(body))
	var wanted [][]string
	if rapid.Bool().Draw(t, "wanted") {
		path := []string{"next"}
		for n := s.Root(); n.Field("r") != nil; n = n.Field("r").Type {
			path = append([]string{"r"}, path...)
		}
		wanted = append(wanted, path)
	}
	layout, err := NewLayout(s, wanted)
	if err != nil {
		t.Fatal(err)
	}
	var v pipeline.View
	check("Walk", layout.Walk(body, &v))
	text, err := AppendJSON(nil, s.Root(), body)
	check("AppendJSON", err)
	if !want {
		text = nestedText(s.Root(), body)
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var value any
	if err := d.Decode(&value); err != nil {
		t.Fatal(err)
	}
	out, err := EncodeJSON(s, value)
	check("EncodeJSON", err)
	if want && !bytes.Equal(out, body) {
		t.Fatalf("%s: %x comes back as %x", s, body, out)
	}
	var j JSON
	if err := j.Parse(text); err != nil {
		t.Fatal(err)
	}
	_, err = j.AppendAvro(nil, s)
	check("JSON.AppendAvro", err)
}

// nestedText returns the JSON of a record that is too deep for AppendJSON.
func nestedText(root *Node, body []byte) []byte {
	var text func(n *Node, enc []byte) (string, []byte)
	text = func(n *Node, enc []byte) (string, []byte) {
		switch n.Kind {
		case Record:
			var fields []string
			for i := range n.Fields {
				var value string
				value, enc = text(n.Fields[i].Type, enc)
				fields = append(fields, fmt.Sprintf("%q:%s", n.Fields[i].Name, value))
			}
			return "{" + strings.Join(fields, ",") + "}", enc
		case Union:
			return text(n.Branches[enc[0]/2], enc[1:])
		case Array, Map:
			if enc[0] == 0 {
				return map[Kind]string{Array: "[]", Map: "{}"}[n.Kind], enc[1:]
			}
			if n.Kind == Map {
				value, rest := text(n.Elem, enc[3:])
				return `{"k":` + value + "}", rest[1:]
			}
			value, rest := text(n.Elem, enc[1:])
			return "[" + value + "]", rest[1:]
		case String:
			return fmt.Sprintf("%q", enc[1:2]), enc[2:]
		case Int:
			return fmt.Sprint(enc[0] / 2), enc[1:]
		}
		return "null", enc
	}
	out, _ := text(root, body)
	return []byte(out)
}

// The limits hold for what is put together from valid parts: items of zero bytes, large
// decimals, and values that a resolution nests more deeply.
func TestWritersRefuseWhatReadersRefuse(t *testing.T) {
	nulls := make([]any, maxEmpty+1)
	s := fieldSchema(t, `{"type":"array","items":"null"}`)
	if _, err := EncodeJSON(s, map[string]any{"v": nulls}); err == nil || !strings.Contains(err.Error(), "more than 4096 items of zero bytes") {
		t.Errorf("4,097 nulls in JSON: %v", err)
	}
	two := mustParse(t, `{"type":"record","name":"R","fields":[{"name":"a","type":{"type":"array","items":"null"}},{"name":"b","type":{"type":"array","items":"null"}}]}`)
	half := append(AppendLong(nil, 3000), 0)
	if err := two.CheckWritten(append(bytes.Clone(half), half...)); err == nil || !strings.Contains(err.Error(), "more than 4096 items of zero bytes") {
		t.Errorf("two arrays of 3,000 nulls: %v", err)
	}
	decimal := fieldSchema(t, `{"type":"bytes","logicalType":"decimal","precision":4000,"scale":0}`)
	if _, err := EncodeJSON(decimal, map[string]any{"v": strings.Repeat("9", 4000)}); err == nil || !strings.Contains(err.Error(), "at most 1024 bytes") {
		t.Errorf("a decimal of 4,000 digits: %v", err)
	}
	fixed := fieldSchema(t, `{"type":"fixed","name":"F","size":2000,"logicalType":"decimal","precision":4000,"scale":0}`)
	body := make([]byte, 2000)
	layout, err := NewLayout(fixed, nil)
	if err != nil {
		t.Fatal(err)
	}
	var v pipeline.View
	for who, err := range map[string]error{"Validate": Validate(fixed.Root(), body), "Walk": layout.Walk(body, &v)} {
		if err == nil || !strings.Contains(err.Error(), "a decimal of 2000 bytes") {
			t.Errorf("%s of a fixed decimal of 2,000 bytes: %v", who, err)
		}
	}
}

// A record of added fields has the same limit of leaves as a record of a body.
func TestAddedFieldsAreLimited(t *testing.T) {
	doubled := `{"type":"record","name":"R0","fields":[{"name":"a","type":"long","default":0}]}`
	for i := range 15 {
		doubled = fmt.Sprintf(`{"type":"record","name":"R%d","fields":[{"name":"a","type":%s},{"name":"b","type":"R%d"}]}`, i+1, doubled, i)
	}
	base := mustParse(t, `{"type":"record","name":"R","fields":[]}`)
	derived := mustParse(t, `{"type":"record","name":"R","fields":[{"name":"v","type":`+doubled+`}]}`)
	if _, err := NewDerivedLayout(base, derived, nil); err == nil || !strings.Contains(err.Error(), "more than 16384 fields") {
		t.Errorf("2^15 added leaves: %v", err)
	}
}
