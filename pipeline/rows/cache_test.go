package rows

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"
)

// A Cache behaves like Go's map under random operations, except for the entries that
// Shrink evicts. Refs stay valid until a Shrink that does not receive them.
func TestCacheAgreesWithGoMapExceptForEvictedEntries(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := NewCache()
		want := map[string]string{}
		refs := map[string]Ref{} // valid Refs
		key := rapid.Custom(func(t *rapid.T) string {
			return fmt.Sprintf("%.*d", rapid.IntRange(0, 40).Draw(t, "width"), rapid.IntRange(0, 300).Draw(t, "number"))
		})
		row := rapid.Custom(func(t *rapid.T) string {
			size := rapid.SampledFrom([]int{0, 1, 3, 20, 100, 5000, slabSize - 20, slabSize + 1}).Draw(t, "size")
			return string(bytes.Repeat([]byte{rapid.Byte().Draw(t, "byte")}, size))
		})
		set := func(k, r string) {
			ref, ok := c.Find([]byte(k))
			if _, there := want[k]; ok != there {
				t.Fatalf("Find(%q) is %v", k, ok)
			}
			old, held := refs[k]
			switch {
			case !ok:
				ref = c.Add([]byte(k), []byte(r))
			case held:
				ref = c.Set(old, []byte(r))
			default:
				ref = c.Set(ref, []byte(r))
			}
			if !held { // keep the oldest Ref: it has to follow the most moves
				refs[k] = ref
			}
			want[k] = r
		}
		t.Repeat(map[string]func(*rapid.T){
			"set": func(t *rapid.T) { set(key.Draw(t, "key"), row.Draw(t, "row")) },
			"set many": func(t *rapid.T) {
				from, size := rapid.IntRange(0, 1000).Draw(t, "from"), rapid.IntRange(0, 60).Draw(t, "size")
				for i := from; i < from+500; i++ {
					set(fmt.Sprint(i), fmt.Sprintf("%0*d", size, i))
				}
			},
			"change in place": func(t *rapid.T) {
				k := key.Draw(t, "key")
				if ref, ok := c.Find([]byte(k)); ok && len(want[k]) > 0 {
					b := []byte(want[k])
					b[0]++
					c.Row(ref)[0]++
					want[k] = string(b)
				}
			},
			"touch": func(*rapid.T) {
				for _, ref := range refs {
					c.Prefetch([]Ref{ref})
				}
			},
			"shrink": func(t *rapid.T) {
				room := rapid.SampledFrom([]int{0, 1 << 10, 100 << 10, 4 << 20, 64 << 20}).Draw(t, "room")
				// Pinned entries must not be evicted.
				pin := [2][]Ref{}
				var keys [2][]string
				pinned := map[string]bool{}
				for k, ref := range refs {
					if i := len(k) % 3; i < 2 {
						pin[i], keys[i] = append(pin[i], ref), append(keys[i], k)
						pinned[k] = true
					}
				}
				before := c.Bytes()
				dropped := c.Shrink(room, pin[0], pin[1])
				if before <= room && dropped > 0 {
					t.Fatalf("%d entries were evicted, although all had room", dropped)
				}
				clear(refs)
				for i := range pin {
					for j, ref := range pin[i] {
						refs[keys[i][j]] = ref
					}
				}
				for k := range want {
					if _, ok := c.Find([]byte(k)); !ok {
						if pinned[k] {
							t.Fatalf("the pinned entry %q was evicted", k)
						}
						delete(want, k)
						dropped--
					}
				}
				if dropped != 0 {
					t.Fatalf("Shrink returned %d more than it evicted", dropped)
				}
			},
			"": func(t *rapid.T) {
				if c.Len() != len(want) {
					t.Fatalf("%d rows, want %d", c.Len(), len(want))
				}
				for k, r := range want {
					if ref, ok := c.Find([]byte(k)); !ok || string(c.Row(ref)) != r || string(c.Key(ref)) != k {
						t.Fatalf("Find(%q) is %.20q, %v; want %.20q", k, c.Row(ref), ok, r)
					}
				}
				for k, ref := range refs {
					if string(c.Row(ref)) != want[k] || string(c.Key(ref)) != k {
						t.Fatalf("the Ref of %q gives row %.20q and key %q, want row %.20q", k, c.Row(ref), c.Key(ref), want[k])
					}
				}
				if _, ok := c.Find([]byte("a key that is never set")); ok {
					t.Fatal("Find returned a row for a key that was never set")
				}
				held := 0
				for _, b := range c.slabs {
					held += cap(b)
				}
				if held != c.held {
					t.Fatalf("the slabs have %d bytes, but held is %d", held, c.held)
				}
			},
		})
	})
}

// Entries that are found often stay longer than others, and the memory stays bounded.
func TestCacheKeepsEntriesThatAreFoundOften(t *testing.T) {
	const room, often, all = 4 << 20, 2_000, 200_000
	c := NewCache()
	rng := rand.New(rand.NewPCG(1, 2))
	row := make([]byte, 100)
	missed := 0
	get := func(i int) {
		k := fmt.Appendf(nil, "key-%09d", i)
		if _, ok := c.Find(k); !ok {
			c.Add(k, row)
			if i < often {
				missed++
			}
		}
	}
	for round := range 300 {
		for range 1000 {
			get(rng.IntN(often))
			get(often + rng.IntN(all))
		}
		c.Shrink(room)
		if n := c.Bytes(); n > room {
			t.Fatalf("round %d: %d bytes, more than the room of %d", round, n, room)
		}
	}
	if n := c.Len(); n < room/2/130 {
		t.Errorf("only %d rows remain", n)
	}
	if missed > 2*often {
		t.Errorf("%d misses of the %d keys in constant use", missed, often)
	}
	// More keys in constant use than there is room for.
	for i := range all {
		get(i)
	}
	for i := range all {
		get(i)
	}
	c.Shrink(room)
	if n := c.Bytes(); n > room {
		t.Errorf("%d bytes, more than the room of %d", n, room)
	}
}

// A Cache releases its memory when it shrinks, and a row that grows with each change does
// not retain the memory of its old versions.
func TestCacheReleasesMemory(t *testing.T) {
	c := NewCache()
	const room = 2 << 20
	for i := range 100_000 {
		c.Add(fmt.Append(nil, i), make([]byte, 50))
	}
	if n := c.Bytes(); n < 2*room {
		t.Fatalf("%d bytes are too few for this test", n)
	}
	c.Shrink(room)
	c.Shrink(room / 64)
	if n := c.Bytes(); n > room/64 {
		t.Fatalf("%d bytes, more than the room of %d", n, room/64)
	}
	ref := c.Add([]byte("grows"), nil)
	for i := range 100_000 {
		ref = c.Set(ref, make([]byte, i))
		if refs := []Ref{ref}; i%1000 == 0 {
			c.Shrink(room, refs)
			ref = refs[0]
		}
	}
	if n := c.Bytes(); n > 2*room {
		t.Fatalf("%d bytes for one row of 100000", n)
	}
}

func BenchmarkCacheUpdate(b *testing.B) {
	const n = 1_000_000
	c := NewCache()
	row := make([]byte, 120)
	keys := make([][]byte, n)
	for i := range keys {
		keys[i] = fmt.Appendf(nil, "u-%012d", i)
		c.Add(keys[i], row)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	b.ReportMetric(float64(c.Bytes())/n, "bytes/row")
	b.ReportAllocs()
	for b.Loop() {
		ref, ok := c.Find(keys[rng.IntN(n)])
		if !ok {
			b.Fatal("a row is missing")
		}
		row[0]++
		c.Set(ref, row)
	}
}
