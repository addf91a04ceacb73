package chain_test

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"millrace/pipeline"
	"millrace/pipeline/codec"
)

// shapes are types as public schemas have them, by name.
var shapes = map[string]string{
	"null":                `"null"`,
	"boolean":             `"boolean"`,
	"float":               `"float"`,
	"double":              `"double"`,
	"bytes":               `"bytes"`,
	"uuid":                `{"type":"string","logicalType":"uuid"}`,
	"date":                `{"type":"int","logicalType":"date"}`,
	"time":                `{"type":"long","logicalType":"time-micros"}`,
	"local timestamp":     `{"type":"long","logicalType":"local-timestamp-millis"}`,
	"decimal":             `{"type":"bytes","logicalType":"decimal","precision":38,"scale":9}`,
	"fixed decimal":       `{"type":"fixed","name":"D","size":16,"logicalType":"decimal","precision":38,"scale":18}`,
	"fixed":               `{"type":"fixed","name":"x.MD5","size":16}`,
	"duration":            `{"type":"fixed","name":"Dur","size":12,"logicalType":"duration"}`,
	"enum with a default": `{"type":"enum","name":"Status","symbols":["UNKNOWN","A","B"],"default":"UNKNOWN"}`,
	"nullable":            `["null","string"]`,
	"null last":           `["long","null"]`,
	"union of many":       `["null","boolean","long","double","string","bytes",{"type":"array","items":"string"},{"type":"map","values":"long"}]`,
	"union of records":    `[{"type":"record","name":"Card","fields":[{"name":"number","type":"string"}]},{"type":"record","name":"Bank","fields":[{"name":"iban","type":"string"}]}]`,
	"nested":              `{"type":"record","name":"A","fields":[{"name":"b","type":{"type":"record","name":"B","fields":[{"name":"c","type":{"type":"record","name":"C","fields":[{"name":"d","type":"int"}]}}]}}]}`,
	"nested nullable":     `["null",{"type":"record","name":"A","fields":[{"name":"b","type":["null",{"type":"record","name":"B","fields":[{"name":"c","type":["null","long"]}]}]}]}]`,
	"linked list":         `["null",{"type":"record","name":"L","fields":[{"name":"v","type":"int"},{"name":"next","type":["null","L"]}]}]`,
	"tree":                `{"type":"array","items":{"type":"record","name":"T","fields":[{"name":"v","type":"string"},{"name":"kids","type":{"type":"array","items":"T"}}]}}`,
	"mutual recursion":    `["null",{"type":"record","name":"P","fields":[{"name":"q","type":["null",{"type":"record","name":"Q","fields":[{"name":"p","type":["null","P"]}]}]}]}]`,
	"map of arrays":       `{"type":"map","values":{"type":"array","items":["null","double"]}}`,
	"array of maps":       `{"type":"array","items":{"type":"map","values":{"type":"record","name":"M","fields":[{"name":"x","type":"bytes"}]}}}`,
	"array of nulls":      `{"type":"array","items":"null"}`,
	"empty record":        `{"type":"record","name":"Nothing","fields":[]}`,
	"a type used twice":   `{"type":"record","name":"Pair","fields":[{"name":"a","type":{"type":"record","name":"Money","fields":[{"name":"v","type":"long"},{"name":"c","type":"string"}]}},{"name":"b","type":"Money"}]}`,
	"200 fields":          manyFields(200),
	"1,000 fields":        manyFields(1000),
}

// A select to another type sets and moves fields within nullable records. All other fields
// are the same bytes, for every type.
func TestSelectKeepsTheBytesOfOtherFields(t *testing.T) {
	for name, typ := range shapes {
		t.Run(name, func(t *testing.T) {
			const person = `["null",{"type":"record","name":"Person","fields":[{"name":"email","type":"string"},{"name":"%s","type":%s}]}]`
			r, pl := offline(t, `
name: t
topics: {in: {partitions: 1, types: [Shape], envelope: none}, out: {partitions: 1, envelope: none}, dead: {partitions: 1}}
pipelines:
  p: {from: in, to: out, dead_letter: dead, stages: [select: {to: o.Out, rename: {person.first: person.rest, n: person.n}, set: {person.email: "person.email + '!'"}}]}
`, map[string]string{"Shape.avsc": `{"type":"record","name":"Shape","fields":[{"name":"n","type":"long"},{"name":"person","type":` + fmt.Sprintf(person, "first", typ) + `},{"name":"last","type":"string"}]}`,
				"Out.avsc": `{"type":"record","name":"o.Out","fields":[{"name":"last","type":"string"},{"name":"person","type":` + strings.Replace(fmt.Sprintf(person, "rest", typ), `"fields":[`, `"fields":[{"name":"n","type":"long"},`, 1) + `}]}`})
			shape := pl.Types[0].Root().Fields[1].Type.NotNull().Fields[1].Type
			rapid.Check(t, func(t *rapid.T) {
				last := codec.AppendString(nil, rapid.StringN(0, 10, -1).Draw(t, "last"))
				in := append([]byte("\x0e\x00"), last...)
				want := append(bytes.Clone(last), 0)
				if rapid.Bool().Draw(t, "person") {
					first := random(t, shape, nil, 1)
					in = slices.Concat([]byte("\x0e\x02\x02a"), first, last)
					want = slices.Concat(last, []byte("\x02\x0e\x04a!"), first)
				}
				out, err := r.Run(t.Context(), &pipeline.Record{Topic: "in", Key: []byte("k"), Value: append(codec.AppendFrame(nil, 0), in...), Time: time.UnixMilli(0)})
				if err != nil || len(out) != 1 || out[0].Schema == nil || !bytes.Equal(out[0].Body, want) {
					t.Fatalf("%x becomes %x (%d records, %v)\nwant %x", in, out[0].Record.Value, len(out), err, want)
				}
			})
		})
	}
}

func manyFields(n int) string {
	fields := make([]string, n)
	for i := range fields {
		fields[i] = fmt.Sprintf(`{"name":"f%d","type":%s}`, i, []string{`"int"`, `["null","string"]`, `"double"`, `"boolean"`}[i%4])
	}
	return `{"type":"record","name":"Wide","fields":[` + strings.Join(fields, ",") + `]}`
}

// random appends a random value of a type.
func random(t *rapid.T, n *codec.Node, dst []byte, depth int) []byte {
	switch n.Kind {
	case codec.Boolean:
		return codec.AppendBool(dst, rapid.Bool().Draw(t, "boolean"))
	case codec.Int:
		return codec.AppendLong(dst, int64(rapid.Int32().Draw(t, "int")))
	case codec.Long:
		return codec.AppendLong(dst, rapid.Int64().Draw(t, "long"))
	case codec.Float:
		return codec.AppendFloat(dst, rapid.Float32().Draw(t, "float"))
	case codec.Double:
		return codec.AppendDouble(dst, rapid.Float64().Draw(t, "double"))
	case codec.String:
		return codec.AppendString(dst, rapid.StringN(0, 40, -1).Draw(t, "string"))
	case codec.Bytes:
		return codec.AppendBytes(dst, rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "bytes"))
	case codec.Fixed:
		return append(dst, rapid.SliceOfN(rapid.Byte(), n.Size, n.Size).Draw(t, "fixed")...)
	case codec.Enum:
		return codec.AppendLong(dst, int64(rapid.IntRange(0, len(n.Symbols)-1).Draw(t, "symbol")))
	case codec.Union:
		at := rapid.IntRange(0, len(n.Branches)-1).Draw(t, "branch")
		if depth > 10 {
			at = 0 // null, in the recursive shapes
		}
		return random(t, n.Branches[at], codec.AppendLong(dst, int64(at)), depth+1)
	case codec.Record:
		for i := range n.Fields {
			dst = random(t, n.Fields[i].Type, dst, depth+1)
		}
		return dst
	case codec.Array, codec.Map:
		for range rapid.IntRange(0, max(0, 2-depth/3)).Draw(t, "blocks") { // each block has one item
			dst = codec.AppendLong(dst, 1)
			if n.Kind == codec.Map {
				dst = codec.AppendString(dst, rapid.StringN(0, 5, -1).Draw(t, "key"))
			}
			dst = random(t, n.Elem, dst, depth+1)
		}
		return append(dst, 0)
	}
	return dst
}

// Fields that no stage changes are the same bytes after the chain, for every type, before
// and after the changed fields.
func TestUntouchedFieldsKeepTheirBytes(t *testing.T) {
	for name, typ := range shapes {
		t.Run(name, func(t *testing.T) {
			r, pl := offline(t, `
name: t
topics: {in: {partitions: 1, types: [Shape], envelope: none}, out: {partitions: 1}, dead: {partitions: 1}}
pipelines:
  p:
    from: in
    to: out
    dead_letter: dead
    stages:
      - filter: {keep: "n > -5000000000"}
      - enrich: {set: {n: "n + 1", meta.note: "'seen'"}}
      - mask: {fields: {email: redact, "person.email": redact}}
`, map[string]string{"Shape.avsc": `{"type":"record","name":"Shape","fields":[{"name":"first","type":` + typ + `},{"name":"n","type":"long"},{"name":"email","type":["null","string"]},
				{"name":"meta","type":{"type":"map","values":"string"}},{"name":"person","type":["null",{"type":"record","name":"Person","fields":[{"name":"email","type":"string"}]}]},{"name":"last","type":"string"}]}`})
			shape := pl.Types[0].Root().Fields[0].Type
			rapid.Check(t, func(t *rapid.T) {
				first := random(t, shape, nil, 1)
				last := codec.AppendString(nil, rapid.StringN(0, 10, -1).Draw(t, "last"))
				null := rapid.Bool().Draw(t, "null")
				body := func(n int64, email, person, meta string) []byte {
					out := codec.AppendLong(bytes.Clone(first), n)
					if null {
						return append(append(out, 0, 0, 0), last...)
					}
					return append(append(out, email+meta+person...), last...)
				}
				in := body(7, "\x02\x06a@b", "\x02\x06c@d", "\x00")
				want := body(8, "\x00", "\x02\x06***", "\x02\x08note\x08seen\x00")
				if null {
					want = append(append(codec.AppendLong(bytes.Clone(first), 8), "\x00\x02\x08note\x08seen\x00\x00"...), last...)
				}
				out, err := r.Run(t.Context(), &pipeline.Record{Topic: "in", Key: []byte("k"), Value: append(codec.AppendFrame(nil, 0), in...), Time: time.UnixMilli(0)})
				if err != nil || len(out) != 1 || out[0].Schema == nil || !bytes.Equal(out[0].Body, want) {
					t.Fatalf("%x becomes %x (%d records, %v)\nwant %x", in, out[0].Record.Value, len(out), err, want)
				}
			})
		})
	}
}
