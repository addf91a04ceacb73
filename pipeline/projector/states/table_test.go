package states

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"pgregory.net/rapid"

	"millrace/pipeline/fold"
	"millrace/pipeline/store"
)

// With many aggregates and little memory, each aggregate keeps its state, and the memory
// stays bounded.
func TestAggregatesKeepTheirStateInLittleMemory(t *testing.T) {
	const aggregates, room = 5000, 256 << 10
	for _, before := range []bool{false, true} {
		s, err := store.Open("data", store.Options{FS: vfs.NewMem()})
		if err != nil {
			t.Fatal(err)
		}
		part, err := s.Part("p", 0, "test")
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]int64{}
		if before {
			b := s.NewBatch()
			for i := range aggregates {
				id := fmt.Sprint("a-", i)
				want[id] = 1
				b.Put(part, FamilyState, []byte(id), fold.AppendAggregate(nil, &fold.Aggregate{Version: 1, State: []byte("before")}))
			}
			if err := b.Commit(); err != nil {
				t.Fatal(err)
			}
		}
		states := NewTable(part, FamilyState, fold.Source{Topic: "t"})
		rng := rand.New(rand.NewPCG(1, 2))
		for round := range 40 {
			for range 500 {
				id := fmt.Sprint("a-", rng.IntN(aggregates))
				a, err := states.Get([]byte(id))
				if err != nil {
					t.Fatal(err)
				}
				if a.Version != want[id] || a.Topic != "t" || a.Version > 1 && string(a.State) != fmt.Sprint(id, " ", a.Version) {
					t.Fatalf("round %d: %s is at version %d with %q, and was left at %d", round, id, a.Version, a.State, want[id])
				}
				a.Version++
				a.State = fmt.Append(nil, id, " ", a.Version)
				want[id] = a.Version
				a.Dirty = true
				states.Settle()
			}
			b := s.NewBatch()
			if err := errors.Join(states.Write(b), b.Commit(), states.Written(room)); err != nil {
				t.Fatal(err)
			}
			if n := states.cache.Bytes(); n > room {
				t.Fatalf("round %d: %d bytes in memory, with room for %d", round, n, room)
			}
		}
		if states.complete {
			t.Error("some were evicted, but the table is marked as complete")
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// tableModel is what a table must contain.
type tableModel struct {
	part    *store.Part
	table   *Table
	batch   *store.Batch
	want    map[string]fold.Aggregate
	clocks  map[string]clocks // the table may have evicted some
	dirty   map[string]bool
	due     map[string]bool
	later   map[string]bool
	sending bool // a transaction is open
}

func newTableModel(part *store.Part, batch *store.Batch) *tableModel {
	return &tableModel{
		part: part, table: NewTable(part, FamilyState, fold.Source{Topic: "t"}), batch: batch,
		want: map[string]fold.Aggregate{}, clocks: map[string]clocks{}, dirty: map[string]bool{}, due: map[string]bool{}, later: map[string]bool{},
	}
}

func (m *tableModel) get(t *rapid.T, id string) *Aggregate {
	a, err := m.table.Get([]byte(id))
	if err != nil {
		t.Fatal(err)
	}
	w := m.want[id]
	if string(a.ID) != id || a.Version != w.Version || !bytes.Equal(a.State, w.State) || !bytes.Equal(a.EventID, w.EventID) || a.Offset != w.Offset || a.EventTime != w.EventTime || a.Topic != "t" {
		t.Fatalf("%s is %+v, want %+v", id, a.Aggregate, w)
	}
	if a.known && a.clocks != m.clocks[id] {
		t.Fatalf("the clocks of %s are %v, want %v", id, a.clocks, m.clocks[id])
	}
	return a
}

// change changes an aggregate like an event.
func (m *tableModel) change(t *rapid.T, id string) {
	a := m.get(t, id)
	a.Version++
	a.Offset, a.EventTime = rapid.Int64().Draw(t, "offset"), rapid.Int64Range(0, 1<<50).Draw(t, "time")
	a.State = append(a.State[:0], rapid.SliceOfN(rapid.Byte(), 0, 3000).Draw(t, "state")...)
	a.EventID = append(a.EventID[:0], rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "event")...)
	a.clocks = clocks{rapid.Int64Range(0, 1<<50).Draw(t, "event"), rapid.Int64Range(0, 1<<50).Draw(t, "recorded"), true}
	a.Dirty, a.Gone = true, false
	if a.Later = m.sending; m.sending {
		m.later[id] = true
	} else {
		a.Due, m.due[id] = true, true
	}
	w := a.Aggregate
	w.State, w.EventID = bytes.Clone(a.State), bytes.Clone(a.EventID)
	m.want[id], m.clocks[id], m.dirty[id] = w, a.clocks, true
	if again := m.get(t, id); again != a {
		t.Fatalf("there are two of %s in use", id)
	}
}

// erase deletes an aggregate like an expired window.
func (m *tableModel) erase(t *rapid.T, id string) {
	if m.dirty[id] || m.sending {
		return
	}
	a := m.get(t, id)
	a.Reset(m.table.source)
	a.Gone, a.Due = true, true
	m.batch.Delete(m.part, FamilyState, []byte(id))
	delete(m.want, id)
	delete(m.clocks, id)
	m.due[id] = true
}

func (m *tableModel) flush(t *rapid.T) {
	n := m.batch.Len()
	if err := m.table.Write(m.batch); err != nil {
		t.Fatal(err)
	}
	if m.batch.Len() != n+len(m.dirty) {
		t.Fatalf("%d are written, want %d: %v", m.batch.Len()-n, len(m.dirty), m.dirty)
	}
	clear(m.dirty)
	memory := rapid.SampledFrom([]int{0, 4 << 10, 1 << 20}).Draw(t, "memory")
	if err := errors.Join(m.batch.Commit(), m.table.Written(memory)); err != nil {
		t.Fatal(err)
	}
}

func (m *tableModel) publish(t *rapid.T) {
	if m.sending {
		return
	}
	m.table.Settle()
	var got []string
	if err := m.table.Publishing(func(id []byte, a *Aggregate) error {
		w := m.want[string(id)]
		if a.Version != w.Version || !bytes.Equal(a.State, w.State) || !bytes.Equal(a.EventID, w.EventID) || a.Topic != "t" || a.Gone != (w.Version == 0) {
			t.Fatalf("%s is published as %+v, want %+v", id, a.Aggregate, w)
		}
		got = append(got, string(id))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if slices.Sort(got); !slices.Equal(got, slices.Sorted(maps.Keys(m.due))) {
		t.Fatalf("%q are published, due are %v", got, m.due)
	}
	m.sending = true
}

// end ends the open transaction.
func (m *tableModel) end(t *rapid.T) {
	if !m.sending {
		return
	}
	m.table.Settle()
	committed := rapid.Bool().Draw(t, "committed")
	if m.table.Published(committed); committed {
		clear(m.due)
	}
	m.table.CatchUp()
	maps.Copy(m.due, m.later)
	clear(m.later)
	m.sending = false
}

// Whatever happens to flushes and transactions, and with any memory: there is one
// aggregate in use per id, each changed aggregate is written once by the next flush, and
// each due aggregate is published, in its current state, until that is committed.
func TestDirtyAndDueAggregatesAreTracked(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, err := store.Open("data", store.Options{FS: vfs.NewMem()})
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}()
		part, err := s.Part("p", 0, "test")
		if err != nil {
			t.Fatal(err)
		}
		m := newTableModel(part, s.NewBatch())
		id := rapid.Custom(func(t *rapid.T) string { return fmt.Sprint("a-", rapid.IntRange(0, 20).Draw(t, "id")) })
		t.Repeat(map[string]func(*rapid.T){
			"change": func(t *rapid.T) {
				for range rapid.IntRange(1, 3).Draw(t, "windows") { // like an event in several windows
					m.change(t, id.Draw(t, "id"))
				}
			},
			"get":     func(t *rapid.T) { m.get(t, id.Draw(t, "id")) },
			"settle":  func(*rapid.T) { m.table.Settle() },
			"erase":   func(t *rapid.T) { m.erase(t, id.Draw(t, "id")) },
			"flush":   m.flush,
			"publish": m.publish,
			"end":     m.end,
			"":        func(*rapid.T) {},
		})
	})
}
