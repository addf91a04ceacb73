package chain

import (
	"bytes"
	"context"
	"encoding/binary"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/sr"
	"pgregory.net/rapid"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/deadletter"
	"millrace/pipeline/harness"
	"millrace/pipeline/topology"
)

// clicks has the schema of Click under every id and GUID.
type clicks struct{ schema *codec.Schema }

func (c clicks) Schema(context.Context, codec.SchemaRef) (*codec.Schema, error) { return c.schema, nil }

// framingHandler returns a handler that multiplies n by 10, rejects 13, and replaces keys.
func framingHandler(t *testing.T) *handler {
	t.Helper()
	plan, err := topology.Load(topology.Source{Name: "topology.yaml", Text: []byte(`
name: t
topics:
  in: {partitions: 1, types: [Click], envelope: none}
  out: {partitions: 1}
  dead: {partitions: 1}
pipelines:
  p:
    from: in
    to: out
    dead_letter: dead
    stages:
      - assert: {that: n != 13}
      - enrich: {set: {n: n * 10}}
      - rekey: {key: id}
`)}, topology.Options{Schemas: harness.ClickSchemas})
	if err != nil {
		t.Fatal(err)
	}
	pl := plan.Pipelines[0]
	return config{
		topology: plan, schemas: clicks{pl.Types[0]}, ids: map[string][]int{"out": {7}},
		metrics: NewMetrics(prometheus.NewRegistry()), now: time.Now, log: slog.New(slog.DiscardHandler),
	}.newHandler(pl)
}

// readClick decodes a record as Confluent's clients do: by the header if there is one,
// else by the frame.
func readClick(r *pipeline.Record) (id string, n int64, err error) {
	body := r.Value
	if _, ok := r.Header("__value_schema_id"); !ok {
		var serde sr.Serde
		serde.Register(7, nil, sr.DecodeFn(func(b []byte, _ any) error {
			body = b
			return nil
		}))
		if err := serde.Decode(r.Value, nil); err != nil {
			return "", 0, err
		}
	}
	text, rest, err := codec.ReadText(body)
	if err == nil {
		n, _, err = codec.ReadLong(rest)
	}
	return string(text), n, err
}

// genFramed returns a record in one of the framings, with headers that describe its
// encoding and others.
func genFramed(t *rapid.T) (r *pipeline.Record, id string, n int64) {
	id, n = rapid.StringN(1, 5, -1).Draw(t, "id"), rapid.Int64Range(0, 20).Draw(t, "n")
	body := codec.AppendLong(codec.AppendString(nil, id), n)
	r = &pipeline.Record{Topic: "in", Key: []byte("old"), Time: time.UnixMilli(1), Started: time.UnixMilli(2)}
	names := []string{"traceparent", "tenant", "", "content-type", "Content-Type", "content-encoding", "contentType", "ce_dataschema", "ce_datacontenttype",
		"ce_source", "__key_schema_id", "__TypeId__", "apicurio.value.globalId", "apicurio.key.globalId", "__other"}
	for _, name := range rapid.SliceOfN(rapid.SampledFrom(names), 0, 5).Draw(t, "headers") {
		r.Headers = append(r.Headers, pipeline.Header{Key: name, Value: []byte(name)})
	}
	header := []byte(nil)
	switch rapid.SampledFrom([]string{"frame", "guid", "id"}).Draw(t, "framing") {
	case "frame":
		r.Value = append(codec.AppendFrame(nil, 3), body...)
		return r, id, n
	case "guid":
		header = append([]byte{1}, bytes.Repeat([]byte{9}, 16)...)
	case "id":
		header = binary.BigEndian.AppendUint32([]byte{0}, 3)
	}
	r.Value = body
	r.Headers = slices.Insert(r.Headers, rapid.IntRange(0, len(r.Headers)).Draw(t, "at"), pipeline.Header{Key: "__value_schema_id", Value: header})
	return r, id, n
}

// Whatever the framing of a record, other readers decode the output, which has one frame
// and no header that describes the old value or the old key. A dead letter that is sent
// back is the record as it came.
func TestEveryOutputHasOneFraming(t *testing.T) {
	h := framingHandler(t)
	carried := []string{"traceparent", "tenant", "", "ce_source", "__other"}
	rapid.Check(t, func(t *rapid.T) {
		in, id, n := genFramed(t)
		before := pipeline.Record{Value: bytes.Clone(in.Value), Headers: slices.Clone(in.Headers)}
		var out collector
		if err := h.Handle(context.Background(), in, &out); err != nil || len(out.records) != 1 {
			t.Fatalf("%d records, %v", len(out.records), err)
		}
		r := &out.records[0]
		if n == 13 {
			if r.Topic != "dead" {
				t.Fatalf("13 is on %s", r.Topic)
			}
			back := deadletter.Original(r)
			back = *deadletter.Plain(&back)
			if !bytes.Equal(back.Value, before.Value) || !slices.EqualFunc(back.Headers, before.Headers, sameHeader) || string(back.Key) != "old" || back.Topic != "in" {
				t.Fatalf("%v came back as %v", before, back)
			}
			return
		}
		gotID, gotN, err := readClick(r)
		if err != nil || gotID != id || gotN != n*10 || string(r.Key) != id {
			t.Fatalf("%q, %d came out as %q, %d, key %q, %v", id, n, gotID, gotN, r.Key, err)
		}
		want := slices.DeleteFunc(before.Headers, func(h pipeline.Header) bool { return !slices.Contains(carried, h.Key) })
		if !slices.EqualFunc(r.Headers, want, sameHeader) {
			t.Fatalf("%v came out with headers %v, want %v", in.Headers, r.Headers, want)
		}
	})
}

func sameHeader(a, b pipeline.Header) bool { return a.Key == b.Key && bytes.Equal(a.Value, b.Value) }
