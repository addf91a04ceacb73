package store

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Compactions wait until Compact, and then run. The tables of many small flushes need one.
func TestCompactionsWaitUntilCompact(t *testing.T) {
	s, err := Open("data", Options{FS: vfs.NewMem(), HoldCompactions: true})
	if err != nil {
		t.Fatal(err)
	}
	part, err := s.Part("p", 0, "test")
	if err != nil {
		t.Fatal(err)
	}
	fill := func() {
		for range 40 {
			b := s.NewBatch()
			for n := range 10 {
				b.Put(part, 1, fmt.Append(nil, n), []byte("value"))
			}
			if err := b.Commit(); err != nil {
				t.Fatal(err)
			}
			if err := s.db.Flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
	fill()
	if n := s.db.Metrics().Compact.Count; n > 0 {
		t.Errorf("%d compactions ran while they were held", n)
	}
	s.Compact()
	s.Compact()
	fill() // without compactions, writes would stop
	// A later purge is a compaction as well, and so waits for its turn.
	if err := part.Purge(); err != nil {
		t.Fatal(err)
	}
	if n := s.db.Metrics().Compact.Count; n == 0 {
		t.Error("no compaction ran")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// If much is written, compactions do not wait: writes would stop some time.
func TestHeldCompactionsBeginAfterManyWrites(t *testing.T) {
	s, err := Open("data", Options{FS: vfs.NewMem(), HoldCompactions: true})
	if err != nil {
		t.Fatal(err)
	}
	part, err := s.Part("p", 0, "test")
	if err != nil {
		t.Fatal(err)
	}
	value := make([]byte, 1<<20)
	for n := range 2 * maxHeld >> 20 {
		b := s.NewBatch()
		b.Put(part, 1, fmt.Append(nil, n%8), value)
		if err := b.Commit(); err != nil {
			t.Fatal(err)
		}
	}
	if s.held.Load() > 0 || !s.compactions.started {
		t.Errorf("compactions are held after %d MiB", 2*maxHeld>>20)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// A store that was killed with much to compact is opened without waiting for that, and
// repeated kills do not stop the writes.
func TestOpenDoesNotWaitForCompactions(t *testing.T) {
	disk := vfs.NewCrashableMem()
	for start := range level0Stop + 8 {
		s, err := Open("data", Options{FS: disk, HoldCompactions: true})
		if err != nil {
			t.Fatal(err)
		}
		if n := s.db.Metrics().Compact.Count; n > 0 && start < level0Stop/4 {
			t.Errorf("start %d: %d compactions ran while the store was opened", start, n)
		}
		part, err := s.Part("p", 0, "test")
		if err != nil {
			t.Fatal(err)
		}
		b := s.NewBatch()
		b.Put(part, 1, []byte("key"), fmt.Append(nil, start))
		if err := b.Commit(); err != nil {
			t.Fatal(err)
		}
		left := disk.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rand.New(rand.NewPCG(1, 2))})
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		disk = left
	}
}
