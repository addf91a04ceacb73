package projection

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/event/eventtest"
	"millrace/pipeline/expr"
	"millrace/pipeline/fold"
	"millrace/pipeline/kafka"
	"millrace/pipeline/keyformat"
	"millrace/pipeline/projector/home"
	"millrace/pipeline/projector/projectiontest"
)

// keyed draws a format of keys, the schema of keys if they are Avro records, and the id of
// an aggregate whose records have such keys.
func keyed(t *rapid.T) (f keyformat.Format, id string) {
	f.Kind = rapid.SampledFrom([]keyformat.Kind{keyformat.Text, keyformat.Avro, keyformat.Long, keyformat.Int, keyformat.UUID, keyformat.Bytes}).Draw(t, "format")
	switch f.Kind {
	case keyformat.Long:
		return f, fmt.Sprint(rapid.Int64().Draw(t, "id"))
	case keyformat.Int:
		return f, fmt.Sprint(rapid.Int32().Draw(t, "id"))
	case keyformat.UUID:
		return f, rapid.StringMatching(`[0-9a-fA-F]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`).Draw(t, "id")
	case keyformat.Bytes:
		return f, rapid.StringMatching(`([0-9a-f]{2}){1,9}`).Draw(t, "id")
	case keyformat.Avro:
		var err error
		f.Schema, err = codec.ParseSchema(rapid.SampledFrom([]string{`"string"`, `{"type":"record","name":"K","fields":[{"name":"id","type":"long"}]}`, `{"type":"record","name":"K","fields":[{"name":"id","type":"string"}]}`}).Draw(t, "schema"))
		if err != nil {
			t.Fatal(err)
		}
		return f, fmt.Sprint(rapid.Int64().Draw(t, "id"))
	}
	return f, rapid.StringMatching(`[a-z][a-z0-9]{0,9}`).Draw(t, "id")
}

// A record that a writer of Millrace wrote is never misplaced, whatever the format of its
// key and the partitioner of its topic. An aggregate whose record key is another is at home
// in the partition of that key. Questions go to the same partition.
func TestWrittenRecordsAreNeverMisplaced(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f, id := keyed(t)
		p := &Projection{Spec: Spec{Events: kafka.TopicInfo{Partitions: rapid.IntRange(1, 50).Draw(t, "partitions")}}}
		by := rapid.SampledFrom([]pipeline.Partitioner{"", pipeline.Murmur2, pipeline.CRC32, pipeline.OtherPartitioner}).Draw(t, "partitioner")
		p.Spec.Fold = counts(t, func(s *fold.Spec) { s.Keys, s.Partitioner = f, by })
		schema := rapid.IntRange(0, 1<<31-1).Draw(t, "schema id")
		schemas := eventtest.Schemas{schema: f.Schema}

		event, err := codec.ParseSchema(`{"type":"record","name":"E","fields":[{"name":"id","type":"string"}]}`)
		if err != nil {
			t.Fatal(err)
		}
		m, err := keyformat.NewMaker(f, "in", event, []string{"id"})
		if err != nil {
			t.Fatal(err)
		}
		layout, err := codec.NewLayout(event, m.Paths())
		if err != nil {
			t.Fatal(err)
		}
		m.Bind(layout)
		var v pipeline.View
		if err := layout.Walk(codec.AppendString(nil, id), &v); err != nil {
			t.Fatal(err)
		}
		key, err := m.Append(nil, schema, &v)
		if err != nil {
			t.Fatal(err)
		}
		in := &pipeline.Record{Key: key, Partition: kafka.PartitionBy(by, key, p.Spec.Events.Partitions)}
		if f.Kind == keyformat.Avro && rapid.Bool().Draw(t, "header") {
			in.Headers = []pipeline.Header{{Key: "__key_schema_id", Value: slices.Clone(key[:codec.FrameSize])}}
			in.Key = key[codec.FrameSize:]
			in.Partition = kafka.PartitionBy(by, in.Key, p.Spec.Events.Partitions)
		}
		var read *keyformat.Key
		if !f.IsText() {
			if read, err = keyformat.NewReader(f, "in", schemas).Read(t.Context(), in); err != nil {
				t.Fatal(err)
			}
		}
		track := &track{projection: p, fold: p.Spec.Fold}
		if err := track.misplaced([]byte(id), read, in.Partition); err != nil {
			t.Fatalf("%s %s, %s: %v", f, id, by, err)
		}
		if home, sure := p.Home(id); sure && home != in.Partition {
			t.Fatalf("%s %s, %s: questions go to partition %d, and the record is in %d", f, id, by, home, in.Partition)
		}
		if by == pipeline.OtherPartitioner || p.Spec.Events.Partitions == 1 {
			return
		}
		// Another aggregate in the same record.
		other, want := "1234", true
		if f.Kind == keyformat.UUID {
			other = "00000000-0000-0000-0000-000000000000"
		}
		if record, err := f.Encode(other, func(*codec.Schema) int { return schema }); err == nil {
			record = record[len(key)-len(in.Key):]
			want = kafka.PartitionBy(by, record, p.Spec.Events.Partitions) != in.Partition
		}
		if got := track.misplaced([]byte(other), read, in.Partition); (got != nil) != want {
			t.Fatalf("%s %s instead of %s, %s: %v", f, other, id, by, got)
		}
	})
}

// counts compiles a fold of counted events, within a property.
func counts(t *rapid.T, change func(*fold.Spec)) *fold.Fold {
	spec := fold.Spec{Name: "texts", Bare: &expr.Bare{}, State: mustParse(t, `{"type":"record","name":"Texts","fields":[{"name":"n","type":"long","default":0}]}`),
		Types: []*codec.Schema{mustParse(t, `{"type":"record","name":"Counted","fields":[{"name":"n","type":"long"}]}`)},
		On:    []fold.On{{Set: []fold.Set{{Field: text("n"), Value: text("n")}}}}}
	change(&spec)
	f, faults := fold.Compile(spec)
	if f == nil {
		t.Fatal(faults)
	}
	return f
}

func mustParse(t *rapid.T, text string) *codec.Schema {
	s, err := codec.ParseSchema(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// An id that no key of the format has cannot be checked by its hash: its event was written
// under another key.
func TestAnIDThatNoKeyHasIsMisplaced(t *testing.T) {
	_, f := projectiontest.Counts(t, func(s *fold.Spec) { s.Keys.Kind = keyformat.Long })
	tr := &track{projection: &Projection{Spec: Spec{Fold: f, Events: kafka.TopicInfo{Name: "in", Partitions: 3}}}, fold: f}
	key, err := keyformat.NewReader(f.Keys(), "in", nil).Read(t.Context(), &pipeline.Record{Key: make([]byte, 8)})
	if err != nil {
		t.Fatal(err)
	}
	bad := tr.misplaced([]byte("user-1"), key, 0)
	const want = `mispartitioned: "user-1" is not the text form of a key in long, the key_format of in, so the event was written under another key. Rekey the events in a pipeline, or set partitioner: other if all events of an aggregate are in one partition anyway`
	if pipeline.ReasonOf(bad) != home.Mispartitioned || bad.Error() != want {
		t.Errorf("got %v, want %s", bad, want)
	}
}

// Without a key expression, the text form of the record's key is the aggregate id: of
// events, of tombstones, of events that cannot be read, of events that wait, and after a
// restart and a release.
func TestTheTextFormOfTheKeyIsTheAggregateID(t *testing.T) {
	longs := func(n byte) []byte { return []byte{0, 0, 0, 0, 0, 0, 0, n} }
	w := newCounts(t, bareCounts(expr.Bare{}, func(s *fold.Spec) { s.Keys.Kind, s.Tombstones = keyformat.Long, fold.DeleteByTombstones }))
	w.history = true
	for i, text := range []string{"a", "b", "c", "d", "e"} {
		w.counted("x", 0, time.Duration(i), text)
		w.log[i].Key = longs(byte(1 + i%2))
	}
	w.log[2].Value = nil                // deletes 1
	w.log[3].Value = w.log[3].Value[:8] // blocks 2
	w.log[4].Key = []byte("no number")  // rejected
	fw := w.start()
	fw.run()
	wants(t, fw, map[string]string{"1": "a", "2": "blocked b"})
	if r := w.snapshots["1"]; len(r.Headers) == 0 {
		t.Error("the tombstone did not delete 1")
	}
	fw.stop()
	fw = w.start()
	fw.run()
	fw.release("2", true)
	wants(t, fw, map[string]string{"1": "a", "2": "b"})
	fw.stop()
	w.counted("x", 0, 0, "f")
	w.log[5].Key = longs(1)
	fw = w.start()
	fw.run()
	wants(t, fw, map[string]string{"1": "f", "2": "b"})
	if published := slices.Sorted(maps.Keys(w.snapshots)); !slices.Contains(published, "1") || !slices.Contains(published, "2") {
		t.Errorf("snapshots have the keys %q", published)
	}
	fw.stop()
}
