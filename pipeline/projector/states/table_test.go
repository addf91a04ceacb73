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
		states := NewTable(part, FamilyState, fold.Source{Topic: "t"})
		want := map[string]fold.Aggregate{}
		known := map[string]clocks{} // may be evicted
		dirty, due, later := map[string]bool{}, map[string]bool{}, map[string]bool{}
		sending := false
		b := s.NewBatch()
		id := rapid.Custom(func(t *rapid.T) string { return fmt.Sprint("a-", rapid.IntRange(0, 20).Draw(t, "id")) })
		get := func(id string) *Aggregate {
			a, err := states.Get([]byte(id))
			if err != nil {
				t.Fatal(err)
			}
			w := want[id]
			if a.ID != id || a.Version != w.Version || !bytes.Equal(a.State, w.State) || !bytes.Equal(a.EventID, w.EventID) || a.Offset != w.Offset || a.EventTime != w.EventTime || a.Topic != "t" {
				t.Fatalf("%s is %+v, want %+v", id, a.Aggregate, w)
			}
			if a.known && a.clocks != known[id] {
				t.Fatalf("the clocks of %s are %v, want %v", id, a.clocks, known[id])
			}
			return a
		}
		t.Repeat(map[string]func(*rapid.T){
			"change": func(t *rapid.T) {
				for range rapid.IntRange(1, 3).Draw(t, "at once") { // like an event in several windows
					id := id.Draw(t, "id")
					a := get(id)
					a.Version++
					a.Offset, a.EventTime = rapid.Int64().Draw(t, "offset"), rapid.Int64Range(0, 1<<50).Draw(t, "time")
					a.State = append(a.State[:0], rapid.SliceOfN(rapid.Byte(), 0, 3000).Draw(t, "state")...)
					a.EventID = append(a.EventID[:0], rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "event")...)
					a.clocks = clocks{rapid.Int64Range(0, 1<<50).Draw(t, "event"), rapid.Int64Range(0, 1<<50).Draw(t, "recorded"), true}
					a.Dirty, a.Gone = true, false
					if a.Later = sending; sending {
						later[id] = true
					} else {
						a.Due, due[id] = true, true
					}
					w := a.Aggregate
					w.State, w.EventID = bytes.Clone(a.State), bytes.Clone(a.EventID)
					want[id], known[id], dirty[id] = w, a.clocks, true
					if again := get(id); again != a {
						t.Fatalf("there are two of %s in use", id)
					}
				}
			},
			"look":   func(t *rapid.T) { get(id.Draw(t, "id")) },
			"settle": func(*rapid.T) { states.Settle() },
			"erase": func(t *rapid.T) { // like an expired window
				if id := id.Draw(t, "id"); !dirty[id] && !sending {
					a := get(id)
					a.Aggregate, a.clocks, a.Gone, a.Due = fold.Aggregate{Source: states.source}, clocks{}, true, true
					b.Delete(part, FamilyState, []byte(id))
					delete(want, id)
					delete(known, id)
					due[id] = true
				}
			},
			"flush": func(t *rapid.T) {
				n := b.Len()
				if err := states.Write(b); err != nil {
					t.Fatal(err)
				}
				if b.Len() != n+len(dirty) {
					t.Fatalf("%d are written, want %d: %v", b.Len()-n, len(dirty), dirty)
				}
				clear(dirty)
				room := rapid.SampledFrom([]int{0, 4 << 10, 1 << 20}).Draw(t, "room")
				if err := errors.Join(b.Commit(), states.Written(room)); err != nil {
					t.Fatal(err)
				}
			},
			"publish": func(t *rapid.T) {
				if sending {
					return
				}
				states.Settle()
				var got []string
				if err := states.Publishing(func(id []byte, a *Aggregate) error {
					w := want[string(id)]
					if a.Version != w.Version || !bytes.Equal(a.State, w.State) || !bytes.Equal(a.EventID, w.EventID) || a.Topic != "t" || a.Gone != (w.Version == 0) {
						t.Fatalf("%s is published as %+v, want %+v", id, a.Aggregate, w)
					}
					got = append(got, string(id))
					return nil
				}); err != nil {
					t.Fatal(err)
				}
				if slices.Sort(got); !slices.Equal(got, slices.Sorted(maps.Keys(due))) {
					t.Fatalf("%q are published, due are %v", got, due)
				}
				sending = true
			},
			"end": func(t *rapid.T) {
				if !sending {
					return
				}
				states.Settle()
				arrived := rapid.Bool().Draw(t, "arrived")
				if states.Published(arrived); arrived {
					clear(due)
				}
				states.CatchUp()
				maps.Copy(due, later)
				clear(later)
				sending = false
			},
			"": func(*rapid.T) {},
		})
	})
}
