package projection

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/event/eventtest"
	"millrace/pipeline/expr"
	"millrace/pipeline/expr/metadata"
	"millrace/pipeline/fold"
	"millrace/pipeline/keyformat"
	"millrace/pipeline/projector/control"
	"millrace/pipeline/projector/states"
	"millrace/pipeline/store"
	"millrace/pipeline/topology"
)

// readsRecords is a change of the fold of counted events: the text of an event has the key
// and headers of its record.
func readsRecords(key, headers string) func(*fold.Spec) {
	return func(s *fold.Spec) {
		s.On[0].Set[0].Value = text(fmt.Sprintf("state.all + [data.text + '/' + %s + '/' + %s]", key, headers))
	}
}

// Expressions over headers, by name and in another way.
const (
	namedHeader = "(has(headers.trace) ? headers.trace : 'none')"
	allHeaders  = "headers.map(h, h + '=' + headers[h]).join('+')"
)

// recordKeys are formats of keys: the expression that reads one as a text, and keys, of
// which some do not have the format.
var recordKeys = []struct {
	format keyformat.Kind
	read   string
	keys   [][]byte
}{
	{keyformat.Text, "key", [][]byte{[]byte("k-0"), []byte("other"), {}, nil}},
	{keyformat.Long, "string(key)", [][]byte{{0, 0, 0, 0, 0, 0, 0, 7}, {0, 0, 0, 0, 0, 0, 1, 0}, []byte("bad")}},
	{keyformat.Avro, "key.tenant + string(key.n)", [][]byte{avroKey("t", 7), avroKey("", 0), {1, 2}}},
}

func avroKey(tenant string, n int64) []byte {
	return codec.AppendLong(codec.AppendString(codec.AppendFrame(nil, 1), tenant), n)
}

// recordWorld is a world whose fold reads records, and a function that gives the records
// which add adds a key and headers.
func recordWorld(rt *rapid.T, t *testing.T, change func(*fold.Spec)) (w *world, records func(add func(n int)) func(n int)) {
	of := recordKeys[rapid.IntRange(0, len(recordKeys)-1).Draw(rt, "format")]
	keySchema := eventtest.Schema(t, `{"type":"record","name":"K","fields":[{"name":"tenant","type":"string"},{"name":"n","type":"long"}]}`)
	w = newCounts(t, func(s *fold.Spec) {
		if s.Keys.Kind = of.format; of.format == keyformat.Avro {
			s.Keys.Schema = keySchema
		}
		readsRecords(of.read, rapid.SampledFrom([]string{namedHeader, allHeaders, "''"}).Draw(rt, "headers"))(s)
		change(s)
	})
	w.configure = func(cfg *Config) {
		cfg.Registry = eventtest.SchemaList(append(slices.Clone(w.types), keySchema))
	}
	name := rapid.SampledFrom([]string{"trace", "tenant", "unread"})
	value := rapid.SampledFrom([][]byte{[]byte("a"), []byte("b"), {}, nil, {0xff}})
	header := rapid.Custom(func(rt *rapid.T) pipeline.Header {
		return pipeline.Header{Key: name.Draw(rt, "name"), Value: value.Draw(rt, "value")}
	})
	return w, func(add func(n int)) func(n int) {
		return func(n int) {
			first := len(w.log)
			add(n)
			for i := first; i < len(w.log); i++ {
				w.log[i].Headers = rapid.SliceOfN(header, 0, 3).Draw(rt, "headers")
				if w.log[i].Key = of.keys[0]; rapid.IntRange(0, 3).Draw(rt, "another key") == 0 {
					w.log[i].Key = rapid.SampledFrom(of.keys).Draw(rt, "key")
				}
			}
		}
	}
}

// A fold that reads the keys and the headers of records has the same states and history
// after aborts, kills, lost stores and snapshots, also of events that wait and of those
// that block.
func TestKeysAndHeadersAreFoldedTheSameOnEveryReplay(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		apply := rapid.Bool().Draw(rt, "apply")
		w, records := recordWorld(rt, t, func(s *fold.Spec) { s.ApplyGap, s.Wait = apply, 4 })
		w.history, w.seldom = rapid.Bool().Draw(rt, "history"), rapid.Bool().Draw(rt, "seldom")
		w.publish = rapid.SampledFrom([]topology.Publish{{}, {Events: 10}}).Draw(rt, "publish")
		add := records(func(n int) { w.addRandomNumbered(rt, n) })
		add(rapid.IntRange(1, 30).Draw(rt, "events"))
		compare(rt, w, w.shake(rt, add), 0)
	})
}

// A follower folds the keys and the headers as its owner does.
func TestAFollowerFoldsKeysAndHeadersAsItsOwnerDoes(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w, records := recordWorld(rt, t, func(s *fold.Spec) { s.Wait = 4 })
		w.history = rapid.Bool().Draw(rt, "history")
		add := records(func(n int) { w.addRandomNumbered(rt, n) })
		add(rapid.IntRange(1, 30).Draw(rt, "events"))
		owner, beside := w.shakeBeside(rt, add)
		compareBeside(rt, w, owner, beside, 0)
	})
}

// withHeader gives the last event a header.
func (w *world) withHeader(name, value string) {
	in := &w.log[len(w.log)-1]
	in.Headers = append(in.Headers, pipeline.Header{Key: name, Value: []byte(value)})
}

// The events that waited behind a blocked one are folded with their keys and headers.
func TestAReleaseFoldsKeysAndHeaders(t *testing.T) {
	w := newCounts(t, readsRecords("key", namedHeader))
	w.counted("k", 0, 0, "a")
	w.withHeader("trace", "1")
	w.poison("k")
	w.counted("k", 0, 0, "b")
	w.withHeader("trace", "2")
	w.log[2].Key = []byte("other")
	w.counted("k", 0, 0, "c")
	fw := w.start()
	fw.run()
	wants(t, fw, map[string]string{"k": "blocked a/k/1"})
	if _, err := fw.ps.Release(t.Context(), fw.ps.Projection("texts"), "k", true); err != nil {
		t.Fatal(err)
	}
	fw.run()
	wants(t, fw, map[string]string{"k": "a/k/1 b/other/2 c/k/none"})
	fw.stop()
}

// An event whose key does not have the format blocks its aggregate if the fold reads the
// key, and only then.
func TestABadKeyBlocksAnAggregateWhoseFoldReadsIt(t *testing.T) {
	for read, want := range map[string]string{"string(key)": "blocked a/7/none", "'-'": "a/-/none b/-/none"} {
		w := newCounts(t, func(s *fold.Spec) {
			s.Keys.Kind = keyformat.Long
			readsRecords(read, namedHeader)(s)
		})
		w.counted("k", 0, 0, "a")
		w.counted("k", 0, 0, "b")
		w.log[0].Key, w.log[1].Key = []byte{0, 0, 0, 0, 0, 0, 0, 7}, []byte("bad")
		fw := w.start()
		fw.run()
		wants(t, fw, map[string]string{"k": want})
		for _, q := range fw.ps.units {
			if b := q.lanes[0].own.blocked["k"]; b != nil && (b.Reason != keyformat.ReasonBadKey || !strings.Contains(b.Error, "is not long, the key_format")) {
				t.Errorf("it is blocked because of %s: %s", b.Reason, b.Error)
			}
		}
		fw.stop()
	}
}

// Id, time and aggregate of an event without an envelope may come from its headers and its
// key, also where the events are folded again.
func TestHeadersReplaceTheEnvelopeInFolds(t *testing.T) {
	w := newCounts(t, bareCounts(expr.Bare{
		ID: text("headers.id"), Time: text("timestamp(int(headers['at']))"), Key: text("headers.tenant + '/' + key"),
		RecordKey: metadata.KeyOf(keyformat.Format{}),
	}, readsRecords("headers.id", "key")))
	for i, id := range []string{"e-1", "e-2", "e-1"} {
		w.counted("k", 0, 0, fmt.Sprint("t", i))
		w.withHeader("id", id)
		w.withHeader("at", "60")
		w.withHeader("tenant", "t")
	}
	want := map[string]string{"t/k": "t0/e-1/k t1/e-2/k"}
	fw := w.start()
	fw.run()
	wants(t, fw, want)
	fw.stop()
	fw = w.start()
	fw.run()
	wants(t, fw, want)
	fw.ps.Forget(map[string]map[string]control.ForgottenRecord{"texts": {"t/k": {}}})
	if err := fw.ps.Erase(t.Context()); err != nil {
		t.Error(err)
	}
	for _, f := range []store.Family{states.FamilyState, states.FamilyState + 1} {
		if left := fw.entries(f); len(left) > 0 {
			t.Errorf("after the erasure, family %d has %q", f, left)
		}
	}
	fw.stop()
}

// What a fold does not read of records costs no bytes, and a header that an expression
// names is kept without the others.
func TestTheStoreKeepsOnlyWhatTheFoldReadsOfRecords(t *testing.T) {
	sizes := func(change func(*fold.Spec), headers bool) (history, waiting int) {
		w := newCounts(t, change)
		w.counted("k", 1, 0, "a")
		w.counted("k", 3, time.Minute, "c") // waits
		for i := range w.log {
			if w.log[i].Key = []byte("key"); headers {
				w.log[i].Headers = []pipeline.Header{{Key: "trace", Value: []byte("12345")}, {Key: "unread", Value: []byte("123456789")}}
			}
		}
		fw := w.start()
		fw.run()
		for _, e := range fw.entries(states.FamilyState + 1) {
			history += len(e)
		}
		for _, e := range fw.entries(familyHeld) {
			waiting += len(e)
		}
		fw.stop()
		return history, waiting
	}
	plain, plainWaits := sizes(nil, false)
	for _, test := range []struct {
		name              string
		change            func(*fold.Spec)
		history, waitsFor int // bytes more
	}{
		{"nothing", nil, 0, 0},
		{"the key", readsRecords("key", "''"), 2 + len("key"), 0},
		{"a header", readsRecords("''", namedHeader), 2 + len("trace") + len("12345") + 2, len("trace") + len("12345") + 2},
		{"all headers", readsRecords("''", allHeaders), 2 + len("trace12345unread123456789") + 4, len("trace12345unread123456789") + 4},
	} {
		history, waits := sizes(test.change, true)
		if history-plain != test.history || waits-plainWaits != test.waitsFor {
			t.Errorf("%s: %d bytes more in the history and %d for an event that waits, want %d and %d", test.name, history-plain, waits-plainWaits, test.history, test.waitsFor)
		}
	}
}

// A record without a key, or a header without a value, is not one with an empty one, also
// after a restart while its event waits.
func TestAnEventThatWaitsKeepsWhatItsRecordLacks(t *testing.T) {
	for key, want := range map[string]string{"": "a/k/ b//none", "none": "blocked a/k/"} {
		w := newCounts(t, readsRecords("key", namedHeader))
		w.counted("k", 2, 0, "b")
		w.log[0].Key, w.log[0].Headers = []byte(key), []pipeline.Header{{Key: "trace"}}
		if key != "" {
			w.log[0].Key = nil
		}
		fw := w.start()
		fw.run()
		fw.stop()
		w.counted("k", 1, 0, "a")
		w.withHeader("trace", "")
		fw = w.start()
		fw.run()
		wants(t, fw, map[string]string{"k": want})
		fw.stop()
	}
}
