package projection

import (
	"context"
	"testing"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/kafka"
	"millrace/pipeline/projector/projectiontest"
)

// checkUnlocked fails if this goroutine may hold a lock while a callback runs.
func (fw *foldWorker) checkUnlocked(callback string) {
	fw.t.Helper()
	if !fw.ps.mu.TryLock() {
		fw.t.Errorf("%s is called under the lock of the Set", callback)
		return
	}
	defer fw.ps.mu.Unlock()
	for _, u := range fw.ps.units {
		if !u.mu.TryLock() {
			fw.t.Errorf("%s is called under the lock of a unit", callback)
			return
		}
		u.mu.Unlock()
	}
}

// Callbacks take locks of their own, so no lock may be held while one runs.
func TestCallbacksRunWithoutALock(t *testing.T) {
	w := newCounts(t, nil)
	w.seldom = true // flushes ask for the end of the partition
	w.counted("k", 0, 0, "a")
	w.poison("k")
	w.counted("k", 0, 0, "b")
	var fw *foldWorker
	called := map[string]bool{}
	check := func(callback string) {
		called[callback] = true
		if fw != nil {
			fw.checkUnlocked(callback)
		}
	}
	w.configure = func(cfg *Config) {
		progress, tail := cfg.Progress, cfg.Tail
		cfg.Progress = func(topic string, partition int32) kafka.PartitionProgress {
			check("Progress")
			return progress(topic, partition)
		}
		cfg.Tail = func(ctx context.Context, topic string, partition int32, from int64, f func(*pipeline.Record) error) error {
			check("Tail")
			return tail(ctx, topic, partition, from, f)
		}
		cfg.Hidden = func(Key, bool) bool {
			check("Hidden")
			return false
		}
	}
	fw = w.start()
	fw.handler.OnWake(func() { check("wake") })
	fw.run()
	fw.release("k", true)
	for _, p := range fw.ps.Partitions(fw.projection()) {
		p.Hidden()
		p.At(0)
	}
	for _, callback := range []string{"Progress", "Tail", "Hidden", "wake"} {
		if !called[callback] {
			t.Errorf("%s was not called", callback)
		}
	}
	fw.stop()
}

// Hidden takes locks of its own, so it must not run under that of the Set.
func TestPartitionsAreListedWithoutALockWhileHiddenRuns(t *testing.T) {
	for _, left := range []bool{false, true} {
		fw := newWorld(t).start()
		fw.run()
		key := Key{projectiontest.EventsTopic, 0}
		called := false
		fw.ps.cfg.Hidden = func(k Key, wasLeft bool) bool {
			if wasLeft == left {
				if !fw.ps.mu.TryLock() {
					t.Fatalf("Hidden(%v) is called under the lock of the Set", k)
				}
				fw.ps.mu.Unlock()
				called = true
			}
			return false
		}
		if left {
			fw.ps.Leave(key)
		}
		done := make(chan int, 1)
		go func() {
			done <- len(fw.ps.Partitions(fw.projection()))
		}()
		select {
		case n := <-done:
			if n != 1 || !called {
				t.Errorf("left %v: %d partitions, Hidden called %v", left, n, called)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("left %v: Hidden waits for the lock of the Set", left)
		}
		fw.stop()
	}
}
