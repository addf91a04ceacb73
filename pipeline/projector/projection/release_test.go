package projection

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/kafka"
	"millrace/pipeline/projector/internalrecord"
	"millrace/pipeline/projector/projectiontest"
	"millrace/pipeline/topology"
)

// blockedWorker is a worker with a blocked aggregate k.
func blockedWorker(t *testing.T) *foldWorker {
	w := newCounts(t, nil)
	w.counted("k", 0, 0, "a")
	w.poison("k")
	w.counted("k", 0, 0, "b")
	fw := w.start()
	fw.run()
	return fw
}

// The partition is revoked after its blocked aggregate was found and before its
// events are folded again.
func TestAReleaseOfAPartitionThatIsRevokedMeanwhileChangesNothing(t *testing.T) {
	fw := blockedWorker(t)
	tail := fw.ps.cfg.Tail
	fw.ps.cfg.Tail = func(ctx context.Context, topic string, partition int32, from int64, f func(*pipeline.Record) error) error {
		fw.handler.Revoke([]kafka.Partition{{Topic: projectiontest.EventsTopic}})
		return tail(ctx, topic, partition, from, f)
	}
	if _, err := fw.ps.Release(t.Context(), fw.projection(), "k", true); !errors.Is(err, ErrNotBlocked) {
		t.Errorf("the release returned %v, want %v", err, ErrNotBlocked)
	}
	fw.close()
	fw = fw.start()
	wants(t, fw, map[string]string{"k": "blocked a"})
	fw.stop()
}

// The partition is revoked after the units were listed and before they are searched.
func TestASearchForABlockedAggregateSkipsARevokedPartition(t *testing.T) {
	fw := blockedWorker(t)
	u := fw.ps.assignedUnits()[0]
	fw.handler.Revoke([]kafka.Partition{{Topic: projectiontest.EventsTopic}})
	if _, _, found := u.findBlocked(fw.projection(), "k"); found {
		t.Error("the revoked partition was searched")
	}
	fw.close()
}

// Without the mark that the release leaves, nothing shows after a restart that the
// snapshot is due: the events of k are below the published offset.
func TestAReleaseDuringAnOpenTransactionIsPublishedAfterARestart(t *testing.T) {
	w := newCounts(t, nil)
	w.counted("k", 0, 0, "a")
	w.poison("k")
	w.counted("k", 0, 0, "b")
	fw := w.start()
	fw.run()
	if _, ok := w.snapshots[internalrecord.BlockedKey("k")]; !ok {
		t.Fatal("the blocked record is not published")
	}
	w.counted("j", 0, 0, "c")
	fw.batch(1) // the open transaction has the due snapshots
	fw.release("k", true)
	fw.commit()
	fw.handler.EndBatch(true)
	fw.stop()

	fw = w.start()
	w.counted("j", 0, 0, "d")
	fw.run()
	if _, ok := w.snapshots[internalrecord.BlockedKey("k")]; ok {
		t.Error("the blocked record of a released aggregate is still published")
	}
	if _, ok := w.snapshots[internalrecord.SkippedKey]; !ok {
		t.Error("the skipped offset is not published")
	}
	wants(t, fw, map[string]string{"k": "a b", "j": "c d"})
	fw.stop()
}

// A release is answered when the next owner knows it: not before the transaction with it has
// committed, whatever the policy of publishing.
func TestAReleaseWaitsUntilItIsPublished(t *testing.T) {
	for _, policy := range []topology.Publish{{}, {Events: 1000}, {Every: time.Hour}} {
		synctest.Test(t, func(t *testing.T) {
			w := newCounts(t, nil)
			w.publish = policy
			w.counted("k", 0, 0, "a")
			w.poison("k")
			w.counted("k", 0, 0, "b")
			fw := w.start()
			fw.run()
			woken := make(chan bool, 10)
			fw.handler.OnWake(func() { woken <- true })
			var out Released
			var err error
			answered := false
			go func() {
				out, err = fw.ps.Release(t.Context(), fw.projection(), "k", true)
				answered = true
			}()
			<-woken
			fw.batch(0)
			fw.abort(fw.at)
			if synctest.Wait(); answered {
				t.Fatalf("%+v: the release was answered before it was published: %+v, %v", policy, out, err)
			}
			<-woken // tried again
			fw.batch(0)
			if synctest.Wait(); answered {
				t.Fatalf("%+v: the release was answered before the commit", policy)
			}
			fw.commit()
			fw.handler.EndBatch(true)
			if synctest.Wait(); !answered || err != nil || out.Blocked != nil {
				t.Errorf("%+v: answered %v: %+v, %v", policy, answered, out, err)
			}
			if _, ok := w.snapshots[internalrecord.SkippedKey]; !ok {
				t.Errorf("%+v: it is not published", policy)
			}
			fw.stop()
		})
	}
}

func TestAReleaseThatCannotBePublishedIsAnError(t *testing.T) {
	for _, why := range []string{"the partition moves", "no transaction commits"} {
		synctest.Test(t, func(t *testing.T) {
			fw := blockedWorker(t)
			woken := make(chan bool, 10)
			fw.handler.OnWake(func() { woken <- true })
			failed := make(chan error, 1)
			go func() {
				_, err := fw.ps.Release(t.Context(), fw.projection(), "k", true)
				failed <- err
			}()
			<-woken
			if why == "the partition moves" {
				fw.handler.Revoke([]kafka.Partition{{Topic: projectiontest.EventsTopic}})
			}
			if err := <-failed; !errors.Is(err, ErrUnpublished) { // after publishTimeout
				t.Errorf("%s: %v", why, err)
			}
			fw.ps.Close()
			fw.close()
		})
	}
}

// Every record of the control topic asks what is still to be erased. That must not wait
// for a session that is folding.
func TestEraseWithNothingToDoTakesNoLockOfAUnit(t *testing.T) {
	fw := newCounts(t, nil).start()
	fw.ps.Forget(nil)
	u := fw.ps.assignedUnits()[0]
	u.mu.Lock()
	if err := fw.ps.Erase(t.Context()); err != nil { // would wait for ever
		t.Error(err)
	}
	u.mu.Unlock()
	fw.stop()
}

// The partition is revoked while Hidden decides about it.
func TestAPartitionThatIsRevokedWhileItIsListedCountsAsRevoked(t *testing.T) {
	w := newCounts(t, nil)
	w.counted("k", 0, 0, "a")
	var fw *foldWorker
	asked := []bool{}
	w.configure = func(cfg *Config) {
		cfg.Hidden = func(_ Key, left bool) bool {
			if asked = append(asked, left); !left {
				fw.handler.Revoke([]kafka.Partition{{Topic: projectiontest.EventsTopic}})
			}
			return left
		}
	}
	fw = w.start()
	if parts := fw.ps.Partitions(fw.projection()); len(parts) != 0 || len(asked) != 2 || !asked[1] {
		t.Errorf("%d partitions are listed; Hidden was asked with left = %v", len(parts), asked)
	}
	fw.close()
}
