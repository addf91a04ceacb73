package resolve

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/twmb/avro"
	"pgregory.net/rapid"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/decimal"
)

// deliberate lists the points in which Resolver differs from twmb/avro, which follows the
// specification but decides per schema. Where a pair of schemas has one of them, only the
// form of the output is checked.
var deliberate = map[string]string{
	"time unit":     "a time in another unit keeps its meaning; the specification copies the number",
	"time kind":     "a date, a time of day and a timestamp do not match; the specification copies the number",
	"decimal":       "a decimal of another precision, scale or size keeps its exact value, or is rejected; by the specification it does not match",
	"bytes as text": "bytes become a string only if they are UTF-8; twmb/avro copies them",
}

// A sample is a type of a writer, with a value. narrow is a schema of this value only:
// without unions, and with the one symbol of each enum.
type sample struct {
	writer, narrow any
	value, plain   []byte // the value, encoded with each
}

// samples draws types and readers of them.
type samples struct {
	t       *rapid.T
	names   int
	differs []string // the deliberate differences of the pair
	renamed bool
}

func (g *samples) pick(what string, of ...string) string {
	return rapid.SampledFrom(of).Draw(g.t, what)
}

func (g *samples) name() string {
	g.names++
	return fmt.Sprintf("%sN%d", g.pick("namespace", "", "a.", "b.c."), g.names)
}

type object = map[string]any

func same2(typ any, enc []byte) sample { return sample{typ, typ, enc, enc} }

// draw draws a type and a value of it.
func (g *samples) draw(depth int, inUnion bool) sample {
	kinds := []string{"null", "boolean", "int", "long", "float", "double", "bytes", "string", "time", "decimal", "fixed", "enum"}
	if depth > 0 {
		kinds = append(kinds, "array", "map", "record", "record", "record")
		if !inUnion {
			kinds = append(kinds, "union", "union", "union")
		}
	}
	switch kind := g.pick("type", kinds...); kind {
	case "null":
		return same2(kind, nil)
	case "boolean":
		return same2(kind, []byte{1})
	case "int", "long":
		return same2(kind, codec.AppendLong(nil, rapid.Int64Range(-5000, 1<<31-1).Draw(g.t, "integer")))
	case "float":
		return same2(kind, codec.AppendFloat(nil, rapid.Float32Range(-1e6, 1e6).Draw(g.t, "float")))
	case "double":
		return same2(kind, codec.AppendDouble(nil, rapid.Float64Range(-1e6, 1e6).Draw(g.t, "double")))
	case "string":
		return same2(kind, codec.AppendString(nil, rapid.StringN(0, 5, -1).Draw(g.t, "string")))
	case "bytes":
		return same2(kind, codec.AppendBytes(nil, rapid.SliceOfN(rapid.ByteRange('a', 'z'), 0, 5).Draw(g.t, "bytes")))
	case "time":
		typ := g.pick("time", "int date", "int time-millis", "long time-micros", "long timestamp-millis", "long timestamp-micros")
		base, logical, _ := strings.Cut(typ, " ")
		return same2(object{"type": base, "logicalType": logical}, codec.AppendLong(nil, rapid.Int64Range(0, 86_399_999).Draw(g.t, "time")))
	case "decimal":
		unscaled, _ := decimal.FromInt(rapid.Int64Range(-99_999, 99_999).Draw(g.t, "unscaled")).AppendBytes(nil, 0)
		return same2(object{"type": "bytes", "logicalType": "decimal", "precision": 5, "scale": 2}, codec.AppendBytes(nil, unscaled))
	case "fixed":
		return same2(object{"type": "fixed", "name": g.name(), "size": 2}, []byte{1, 0xff})
	case "enum":
		return g.enum()
	case "array", "map":
		item := g.draw(depth-1, false)
		of, start := "items", []byte{2}
		if kind == "map" {
			of, start = "values", []byte{2, 2, 'k'}
		}
		around := func(enc []byte) []byte { return append(append(bytes.Clone(start), enc...), 0) }
		return sample{object{"type": kind, of: item.writer}, object{"type": kind, of: item.narrow}, around(item.value), around(item.plain)}
	case "record":
		return g.record(depth)
	}
	return g.union(depth)
}

func (g *samples) enum() sample {
	symbols := []string{"A", "B", "C", "D"}[:rapid.IntRange(1, 4).Draw(g.t, "symbols")]
	at := rapid.IntRange(0, len(symbols)-1).Draw(g.t, "symbol")
	name := g.name()
	return sample{object{"type": "enum", "name": name, "symbols": symbols}, object{"type": "enum", "name": name, "symbols": symbols[at : at+1]},
		codec.AppendLong(nil, int64(at)), []byte{0}}
}

func (g *samples) record(depth int) sample {
	var s sample
	var fields, narrow []any
	for i := range rapid.IntRange(0, 3).Draw(g.t, "fields") {
		f := g.draw(depth-1, false)
		name := fmt.Sprintf("f%d", i)
		fields, narrow = append(fields, object{"name": name, "type": f.writer}), append(narrow, object{"name": name, "type": f.narrow})
		s.value, s.plain = append(s.value, f.value...), append(s.plain, f.plain...)
	}
	name := g.name()
	s.writer = object{"type": "record", "name": name, "fields": append([]any{}, fields...)}
	s.narrow = object{"type": "record", "name": name, "fields": append([]any{}, narrow...)}
	return s
}

func (g *samples) union(depth int) sample {
	var branches []any
	var all []sample
	seen := map[string]bool{}
	for range rapid.IntRange(1, 4).Draw(g.t, "branches") {
		b := g.draw(depth-1, true)
		if kind := kindOf(b.writer); kind == "record" || kind == "enum" || kind == "fixed" || !seen[kind] {
			seen[kind] = true
			branches, all = append(branches, b.writer), append(all, b)
		}
	}
	at := rapid.IntRange(0, len(all)-1).Draw(g.t, "branch")
	return sample{branches, all[at].narrow, append(codec.AppendLong(nil, int64(at)), all[at].value...), all[at].plain}
}

func kindOf(typ any) string {
	switch typ := typ.(type) {
	case string:
		return typ
	case object:
		return typ["type"].(string)
	}
	return "union"
}

// reader draws a type for readers of the writer's type: the same, or with changes.
func (g *samples) reader(typ any, inUnion bool) any {
	if !inUnion && kindOf(typ) != "union" && rapid.IntRange(0, 4).Draw(g.t, "into a union") == 0 {
		return g.intoUnion(typ)
	}
	if rapid.IntRange(0, 12).Draw(g.t, "another type") == 0 {
		other := g.draw(1, inUnion).writer
		g.mark(typ, other)
		g.renamed = true
		return other
	}
	switch typ := typ.(type) {
	case string:
		to := g.pick("promoted", append(promoted[typ], typ, typ)...)
		g.mark(typ, to)
		return to
	case []any:
		return g.readerUnion(typ)
	case object:
		return g.readerOf(typ)
	}
	return typ
}

var promoted = map[string][]string{
	"int": {"long", "float", "double"}, "long": {"float", "double", "int"}, "float": {"double"}, "string": {"bytes"}, "bytes": {"string"},
}

// mark notes the deliberate differences of a pair.
func (g *samples) mark(w, r any) {
	logical := func(typ any) string {
		if o, ok := typ.(object); ok {
			name, _ := o["logicalType"].(string)
			return name
		}
		return ""
	}
	if branches, ok := w.([]any); ok {
		for _, b := range branches {
			g.mark(b, r)
		}
		return
	}
	switch a, b := logical(w), logical(r); {
	case a == "decimal" || b == "decimal":
		g.differs = append(g.differs, "decimal")
	case strings.Contains(a+b, "time") || strings.Contains(a+b, "date"):
		g.differs = append(g.differs, "time kind")
	}
	if branches, ok := r.([]any); ok {
		for _, b := range branches {
			g.mark(w, b)
		}
	}
}

func (g *samples) intoUnion(typ any) any {
	own := g.reader(typ, true)
	union := []any{own}
	seen := map[string]bool{kindOf(own): true}
	for range rapid.IntRange(0, 2).Draw(g.t, "other branches") {
		b := g.draw(1, true).writer
		if !seen[kindOf(b)] {
			seen[kindOf(b)] = true
			union = append(union, b)
			g.mark(typ, b)
			g.renamed = g.renamed || kindOf(b) == "record"
		}
	}
	if rapid.Bool().Draw(g.t, "last") {
		slices.Reverse(union)
	}
	return union
}

func (g *samples) readerUnion(branches []any) any {
	var union []any
	seen := map[string]bool{}
	for _, b := range branches {
		if len(branches) > 1 && rapid.IntRange(0, 4).Draw(g.t, "without the branch") == 0 {
			g.renamed = g.renamed || kindOf(b) == "record"
			continue
		}
		r := g.reader(b, true)
		for _, other := range branches {
			g.mark(other, r)
		}
		if kind := kindOf(r); kind == "record" || kind == "enum" || kind == "fixed" || !seen[kind] {
			seen[kind] = true
			union = append(union, r)
		}
	}
	if len(union) == 1 && rapid.Bool().Draw(g.t, "no union") {
		return union[0]
	}
	if len(union) == 0 {
		return "null"
	}
	return union
}

// rename changes the name of a named type to one that still matches, or to another one.
func (g *samples) rename(out object) {
	name := out["name"].(string)
	short := name[strings.LastIndexByte(name, '.')+1:]
	how := g.pick("name", "same", "same", "same", "namespace", "alias", "short alias", "other", "wrong alias")
	g.renamed = g.renamed || how != "same" && how != "alias"
	switch how {
	case "namespace":
		out["name"] = "z." + short
	case "alias":
		out["name"], out["aliases"] = "z.Renamed"+short, []string{name}
		if !strings.Contains(name, ".") {
			out["name"] = "Renamed" + short
		}
	case "short alias":
		out["name"], out["aliases"] = "z.Renamed"+short, []string{short}
	case "other":
		out["name"] = "Other" + short
	case "wrong alias":
		out["name"], out["aliases"] = "z.Renamed"+short, []string{"y.y." + short}
	}
}

func (g *samples) readerOf(typ object) any {
	out := object{}
	for k, v := range typ {
		out[k] = v
	}
	switch kindOf(typ) {
	case "array":
		out["items"] = g.reader(typ["items"], false)
	case "map":
		out["values"] = g.reader(typ["values"], false)
	case "fixed":
		g.rename(out)
		out["size"] = rapid.SampledFrom([]int{2, 2, 2, 3}).Draw(g.t, "size")
	case "enum":
		g.rename(out)
		symbols := rapid.Permutation([]string{"A", "B", "C", "D", "E"}).Draw(g.t, "symbols")[:rapid.IntRange(1, 5).Draw(g.t, "known")]
		out["symbols"] = symbols
		if rapid.Bool().Draw(g.t, "default") {
			out["default"] = symbols[0]
		}
	case "record":
		g.rename(out)
		out["fields"] = g.readerFields(typ["fields"].([]any))
	case "bytes":
		out["scale"] = rapid.SampledFrom([]int{2, 2, 1, 3}).Draw(g.t, "scale")
		out["precision"] = rapid.SampledFrom([]int{5, 5, 4, 7}).Draw(g.t, "precision")
		if out["scale"] != 2 || out["precision"] != 5 {
			g.differs = append(g.differs, "decimal")
		}
	case "long":
		if logical := typ["logicalType"].(string); rapid.IntRange(0, 2).Draw(g.t, "unit") == 0 {
			out["logicalType"] = map[string]string{"time-micros": "time-nanos", "timestamp-millis": "timestamp-micros", "timestamp-micros": "timestamp-millis"}[logical]
			g.differs = append(g.differs, "time unit")
		}
	}
	return out
}

func (g *samples) readerFields(fields []any) []any {
	out := []any{}
	for _, f := range fields {
		f := f.(object)
		if rapid.IntRange(0, 4).Draw(g.t, "without the field") == 0 {
			continue
		}
		field := object{"name": f["name"], "type": g.reader(f["type"], false)}
		if rapid.IntRange(0, 4).Draw(g.t, "renamed") == 0 {
			field["name"], field["aliases"] = "renamed_"+f["name"].(string), []any{"no_" + f["name"].(string), f["name"]}
		}
		out = append(out, field)
	}
	switch g.pick("added", "no", "no", "with a default", "without") {
	case "with a default":
		out = append(out, object{"name": "added", "type": []any{"null", "long"}, "default": nil})
	case "without":
		out = append(out, object{"name": "added", "type": "long"})
	}
	return append([]any{}, rapid.Permutation(out).Draw(g.t, "order")...)
}

// text returns the schema of a record with a type.
func text(t *rapid.T, typ any) string {
	text, err := json.Marshal(object{"type": "record", "name": "Root", "fields": []any{object{"name": "v", "type": typ}}})
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func parsed(t *rapid.T, typ any) *codec.Schema {
	s, err := codec.ParseSchema(text(t, typ))
	if err != nil {
		t.Fatalf("%s: %v", text(t, typ), err)
	}
	return s
}

// A pair is a value of a writer, and a reader's type.
type pair struct {
	sample
	reader  any
	differs []string // the deliberate differences
	renamed bool     // a name of the reader may match by its last part only, or not at all
}

func drawPair(t *rapid.T) pair {
	g := &samples{t: t}
	s := g.draw(3, false)
	reader := g.reader(s.writer, false)
	return pair{s, reader, g.differs, g.renamed}
}

// A Resolver agrees with twmb/avro about each value, except for the deliberate differences.
func resolutionLaws(t *rapid.T) {
	s := drawPair(t)
	writer, narrow, reader := parsed(t, s.writer), parsed(t, s.narrow), parsed(t, s.reader)
	if err := codec.Validate(writer.Root(), s.value); err != nil {
		t.Fatalf("%s %x: %v", writer, s.value, err)
	}
	out, err := resolved(writer, reader, s.value)
	if err != nil && (pipeline.ClassOf(err) != pipeline.ClassReject || !strings.Contains(err.Error(), "v")) {
		t.Fatalf("%s as %s: %v", writer, reader, err)
	}
	if err == nil {
		if err := codec.Validate(reader.Root(), out); err != nil {
			t.Fatalf("%s as %s: %x becomes %x: %v", writer, reader, s.value, out, err)
		}
	}
	// The same value with a schema of its own gives the same result.
	again, narrowErr := resolved(narrow, reader, s.plain)
	if (narrowErr == nil) != (err == nil) || !bytes.Equal(again, out) {
		t.Fatalf("%s as %s: %x becomes %x, %v; with the schema of the value, %s, it becomes %x, %v", writer, reader, s.value, out, err, narrow, again, narrowErr)
	}
	if len(s.differs) > 0 {
		for _, d := range s.differs {
			if deliberate[d] == "" {
				t.Fatalf("%s is not in the table", d)
			}
		}
		return
	}
	theirs, theirErr := byTwmb(narrow, reader, s.plain)
	if (theirErr == nil) != (err == nil) || err == nil && !bytes.Equal(theirs, out) {
		t.Fatalf("%s as %s: %x becomes %x, %v; twmb/avro: %x, %v", writer, reader, s.value, out, err, theirs, theirErr)
	}
}

// resolved resolves a body. A schema of which no value fits gives an error like one value.
func resolved(writer, reader *codec.Schema, body []byte) ([]byte, error) {
	r, err := New(writer, reader)
	switch {
	case err != nil:
		return nil, pipeline.Reject(pipeline.ReasonBadSchema, "%w", err)
	case r == nil:
		return body, nil
	}
	return r.Append(nil, body)
}

func byTwmb(writer, reader *codec.Schema, body []byte) ([]byte, error) {
	s, err := avro.Resolve(writer.Avro(), reader.Avro())
	if err != nil {
		return nil, err
	}
	var native any
	if _, err := s.Decode(body, &native, avro.TaggedUnions()); err != nil {
		return nil, err
	}
	return reader.Avro().Encode(native)
}

func TestResolutionLaws(t *testing.T) { rapid.Check(t, resolutionLaws) }

func FuzzResolutionLaws(f *testing.F) { f.Fuzz(rapid.MakeFuzz(resolutionLaws)) }
