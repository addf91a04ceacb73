package states

import (
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"millrace/pipeline/store"
)

// A filter that is loaded at any time knows every id that was written.
func TestAFilterForgetsNoID(t *testing.T) {
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
	hash := func(n int) uint64 { // of an id; it is cheap, because there are many ids
		h := (uint64(n) + 1) * 0x9e3779b97f4a7c15
		h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
		h = (h ^ h>>27) * 0x94d049bb133111eb
		return h ^ h>>31
	}
	rng := rand.New(rand.NewPCG(1, 2))
	f := &filter{part: part}
	n := 0
	for _, size := range []int{1, 10, filterIDs / 2, filterIDs/2 - 11, 5, 2*filterIDs + 7, 3, 1} {
		for range size {
			f.add(hash(n))
			n++
		}
		b := s.NewBatch()
		f.write(b)
		if err := b.Commit(); err != nil {
			t.Fatal(err)
		}
		f.written()
		again := &filter{part: part}
		if err := again.load(); err != nil {
			t.Fatal(err)
		}
		if len(again.layers) != len(f.layers) || again.stored != f.stored || again.chunks != f.chunks {
			t.Fatalf("after %d ids: %d layers, %d stored, %d chunks; again %d, %d, %d", n, len(f.layers), f.stored, f.chunks, len(again.layers), again.stored, again.chunks)
		}
		for range 10_000 {
			if have := rng.IntN(n); !again.mayHave(hash(have)) {
				t.Fatalf("of %d ids, number %d is unknown", n, have)
			}
		}
		f = again
	}
	wrong := 0
	for i := range 10_000 {
		if f.mayHave(hash(n + i)) {
			wrong++
		}
	}
	if limit := 150 * len(f.layers); wrong > limit {
		t.Errorf("%d of 10,000 new ids are taken for known ones, more than %d", wrong, limit)
	}
	t.Logf("%d of 10,000 new ids are taken for known ones, with %d layers", wrong, len(f.layers))
}
