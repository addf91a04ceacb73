package states

import (
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"millrace/pipeline/store"
)

// A filter that is loaded at any time knows every id that was written, whether its head is
// valid or not, and however much of it was read.
func TestAFilterForgetsNoID(t *testing.T) {
	part, s := openPart(t)
	rng := rand.New(rand.NewPCG(1, 2))
	f := &filter{part: part}
	n := 0
	for _, size := range []int{1, 10, filterIDs / 2, filterIDs/2 - 11, 5, 2*filterIDs + 7, 3, 1} {
		for range size {
			f.add(hashOf(n))
			n++
		}
		b := s.NewBatch()
		if err := f.write(b, int64(n), -1); err != nil {
			t.Fatal(err)
		}
		if err := b.Commit(); err != nil {
			t.Fatal(err)
		}
		f.written()
		again, old := &filter{part: part}, &filter{part: part}
		if err := errors.Join(again.load(int64(n), -1), old.load(int64(n)-1, -1)); err != nil {
			t.Fatal(err)
		}
		if !again.unread || old.unread {
			t.Fatalf("unread: %v with a valid head, %v without", again.unread, old.unread)
		}
		if len(again.layers) != len(f.layers) || again.stored != f.stored || again.chunks != f.chunks {
			t.Fatalf("after %d ids: %d layers, %d stored, %d chunks; again %d, %d, %d", n, len(f.layers), f.stored, f.chunks, len(again.layers), again.stored, again.chunks)
		}
		for range 10_000 {
			have := rng.IntN(n)
			if again.unread && rng.IntN(10) == 0 {
				if err := again.readMore(rng.IntN(2 * filterPiece)); err != nil {
					t.Fatal(err)
				}
			}
			if !again.mayHave(hashOf(have)) || !old.mayHave(hashOf(have)) {
				t.Fatalf("of %d ids, number %d is unknown", n, have)
			}
		}
		for i := range old.layers {
			if !again.unread && !slices.Equal(again.layers[i].words, old.layers[i].words) {
				t.Fatalf("after %d ids: layer %d differs if it is read in pieces", n, i)
			}
		}
		// The next ids come while a part is unread.
		f = &filter{part: part}
		if err := f.load(int64(n), -1); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.readMore(0); err != nil {
		t.Fatal(err)
	}
	wrong := 0
	for i := range 10_000 {
		if f.mayHave(hashOf(n + i)) {
			wrong++
		}
	}
	if limit := 150 * len(f.layers); wrong > limit {
		t.Errorf("%d of 10,000 new ids are taken for known ones, more than %d", wrong, limit)
	}
	t.Logf("%d of 10,000 new ids are taken for known ones, with %d layers", wrong, len(f.layers))
}

// openPart returns an empty part of a store in memory.
func openPart(t *testing.T) (*store.Part, *store.Store) {
	t.Helper()
	s, err := store.Open("data", store.Options{FS: vfs.NewMem()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	part, err := s.Part("p", 0, "test")
	if err != nil {
		t.Fatal(err)
	}
	return part, s
}

// hashOf returns the hash of an id. It is cheap, because there are many ids.
func hashOf(n int) uint64 {
	h := (uint64(n) + 1) * 0x9e3779b97f4a7c15
	h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
	h = (h ^ h>>27) * 0x94d049bb133111eb
	return h ^ h>>31
}
