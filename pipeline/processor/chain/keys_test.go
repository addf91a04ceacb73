package chain_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/deadletter"
	"millrace/pipeline/harness"
	"millrace/pipeline/processor/chain"
	"millrace/pipeline/processor/processortest"
	"millrace/pipeline/rows"
)

const keysTopology = `
name: t
topics:
  in: {partitions: 1, types: [Click], envelope: none, key_format: %s}
  out: {partitions: 1%s}
  pages: {partitions: 1, types: [Page], envelope: none, config: {cleanup.policy: compact}}
  dead: {partitions: 1}
tables:
  pages: {topic: pages}
pipelines:
  p:
    from: in
    to: out
    dead_letter: dead
    stages:
      - lookup: {table: pages, set: {id: row.title}, missing: keep}
%s`

// The bytes of a key pass unchanged, and a lookup without a key finds the row by its text
// form. A key of another format is a dead letter with its bytes.
func TestKeysOfOtherFormatsPassUnchanged(t *testing.T) {
	for _, test := range []struct {
		format string
		key    []byte
		text   string
		bad    []byte
		hint   string
	}{
		{"text", []byte("7"), "7", []byte{0, 0, 0, 7}, "it seems to be int"},
		{"long", binary.BigEndian.AppendUint64(nil, 7), "7", []byte("7"), "it seems to be text"},
		{"int", binary.BigEndian.AppendUint32(nil, 7), "7", []byte("seven"), "it seems to be text"},
		{"uuid", bytes.Repeat([]byte{1}, 16), "01010101-0101-0101-0101-010101010101", []byte("x"), "it seems to be text"},
		{"bytes", []byte{0xff, 0}, "ff00", nil, "the record has no key"},
		{"avro, key_schema: Click", append(codec.AppendFrame(nil, 1), codec.AppendLong(codec.AppendString(nil, "a"), 7)...), `{"id":"a","n":7}`, []byte("x"), "it seems to be text"},
	} {
		t.Run(test.format, func(t *testing.T) {
			b := processortest.NewBench(t, fmt.Sprintf(keysTopology, test.format, "", ""))
			w := b.Worker("0")
			held := rows.New()
			held.Set([]byte(test.text), codec.AppendLong(codec.AppendString(codec.AppendString(nil, "p"), "found"), 0))
			b.Plan.Tables[0].Rows = held
			h := chain.NewHandler(w, b.Registry, b.IDs, chain.NewMetrics(w.Metrics), time.Now)
			key := test.key
			if strings.HasPrefix(test.format, "avro") {
				key = append(bytes.Clone(b.Click("", 0, time.Now()).Value[:codec.FrameSize]), key[codec.FrameSize:]...)
			}
			good, bad := b.Click("a", 1, time.UnixMilli(1)), b.Click("a", 1, time.UnixMilli(1))
			good.Key, bad.Key = key, test.bad
			var out harness.Emitted
			for _, r := range []*pipeline.Record{good, bad} {
				if err := h.Handle(t.Context(), r, &out); err != nil {
					t.Fatal(err)
				}
			}
			if len(out) != 2 {
				t.Fatalf("%d records", len(out))
			}
			if id, _, _ := codec.ReadText(out[0].Value[codec.FrameSize:]); out[0].Topic != "out" || !bytes.Equal(out[0].Key, key) || string(id) != "found" {
				t.Errorf("the event is on %s with the key %x and the id %q", out[0].Topic, out[0].Key, id)
			}
			if l := deadletter.Parse(&out[1]); out[1].Topic != "dead" || !bytes.Equal(out[1].Key, test.bad) || l.Reason != "bad_key" || !strings.Contains(l.Error, test.hint) {
				t.Errorf("the bad key %x is on %s: %s", out[1].Key, out[1].Topic, l.Error)
			}
		})
	}
}

// rekey sets the text form, which is converted to the format of the output.
func TestRekeyWritesTheFormatOfTheOutput(t *testing.T) {
	b := processortest.NewBench(t, fmt.Sprintf(keysTopology, "text", ", key_format: long", "      - rekey: {key: id}\n"))
	w := b.Worker("0")
	b.Plan.Tables[0].Rows = rows.New()
	h := chain.NewHandler(w, b.Registry, b.IDs, chain.NewMetrics(w.Metrics), time.Now)
	var out harness.Emitted
	for _, id := range []string{"-2", "two"} {
		if err := h.Handle(t.Context(), b.Click(id, 1, time.UnixMilli(1)), &out); err != nil {
			t.Fatal(err)
		}
	}
	if len(out) != 2 || !bytes.Equal(out[0].Key, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe}) {
		t.Fatalf("the records are %v", out)
	}
	if l := deadletter.Parse(&out[1]); l.Reason != "bad_key" || l.Stage != deadletter.StageEncode || l.Error != `bad_key: "two" is not a key of the format long` {
		t.Errorf("the event whose key is no long became %+v", l)
	}
}

const readKeyTopology = `
name: t
topics:
  in: {partitions: 1, types: [Click], envelope: none, key_format: %s}
  out: {partitions: 1, key_format: text}
  dead: {partitions: 1}
pipelines:
  p:
    from: in
    to: out
    dead_letter: dead
    stages:
      - rekey: {key: %s}
`

// In a stage, key has the type of the topic's keys: an int, the fields of an Avro record, or
// text.
func TestAStageReadsTheKeyWithTheTypeOfItsFormat(t *testing.T) {
	for _, test := range []struct {
		format, expression string
		key                []byte
		want               string
	}{
		{"text", "key + '!'", []byte("7"), "7!"},
		{"long", "string(key + 1)", binary.BigEndian.AppendUint64(nil, 257), "258"},
		{"int", "string(key - 1)", []byte{0xff, 0xff, 0xff, 0xff}, "-2"},
		{"uuid", "key", bytes.Repeat([]byte{0xab}, 16), "abababab-abab-abab-abab-abababababab"},
		{"bytes", "key", []byte{0, 0xff}, "00ff"},
		{"bytes", "key", bytes.Repeat([]byte{0xff}, 100), strings.Repeat("ff", 100)},
		{"avro, key_schema: Click", "key.id + '/' + string(key.n + 1)", codec.AppendLong(codec.AppendString(nil, "a"), 7), "a/8"},
	} {
		t.Run(test.format, func(t *testing.T) {
			b := processortest.NewBench(t, fmt.Sprintf(readKeyTopology, test.format, `"`+test.expression+`"`))
			w := b.Worker("0")
			h := chain.NewHandler(w, b.Registry, b.IDs, chain.NewMetrics(w.Metrics), time.Now)
			r := b.Click("x", 1, time.UnixMilli(1))
			r.Key = test.key
			if strings.HasPrefix(test.format, "avro") {
				r.Key = append(bytes.Clone(r.Value[:codec.FrameSize]), test.key...)
			}
			var out harness.Emitted
			if err := h.Handle(t.Context(), r, &out); err != nil || len(out) != 1 {
				t.Fatal(out, err)
			}
			if string(out[0].Key) != test.want || out[0].Topic != "out" {
				l := deadletter.Parse(&out[0])
				t.Errorf("%s of %x is %q on %s %s, want %q", test.expression, r.Key, out[0].Key, out[0].Topic, l.Error, test.want)
			}
		})
	}
}
