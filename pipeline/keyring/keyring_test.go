package keyring_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"millrace/pipeline"
	"millrace/pipeline/harness"
	"millrace/pipeline/kafka"
	"millrace/pipeline/keyring"
	"millrace/pipeline/keyring/keyringtest"
	"millrace/pipeline/seal"
)

// gatedWriter waits before each write.
type gatedWriter struct {
	keyring.RecordWriter
	wait func()
}

func (w *gatedWriter) Write(ctx context.Context, r *pipeline.Record, done func(error)) {
	w.wait()
	w.RecordWriter.Write(ctx, r, done)
}

// Rings that create keys for the same subjects at the same time use the same keys,
// and so does a ring that starts later.
func TestRingsThatCreateAKeyAtTheSameTimeAgree(t *testing.T) {
	const partitions, rounds, racers = 3, 20, 4
	b := keyringtest.NewBox(t, partitions)
	keks := keyringtest.KEKs(t, "a")
	var rings []*keyring.Ring
	var gates []*gatedWriter
	for range racers {
		gate := &gatedWriter{RecordWriter: b.Writer()}
		gates, rings = append(gates, gate), append(rings, b.Ring(keks, gate))
	}
	ids := map[string]map[seal.KeyID]bool{}
	for round := range rounds {
		subjects := []string{fmt.Sprintf("u-%d", round), fmt.Sprintf("v/%d", round)}
		var ready, work sync.WaitGroup
		ready.Add(racers)
		for i, k := range rings {
			gates[i].wait = sync.OnceFunc(func() {
				ready.Done()
				ready.Wait() // every ring has seen that there is no key
			})
			work.Go(func() {
				if err := k.Ensure(t.Context(), subjects); err != nil {
					t.Error(err)
				}
			})
		}
		work.Wait()
		for _, s := range subjects {
			ids[s] = map[seal.KeyID]bool{}
			for _, k := range rings {
				ids[s][currentID(t, k, s)] = true
			}
		}
	}
	late := b.Ring(keks, b.Writer())
	for s, of := range ids {
		if of[currentID(t, late, s)] = true; len(of) != 1 {
			t.Errorf("%s has the keys %v", s, of)
		}
	}
	if n := len(b.DataKeys()); n != racers*len(ids) {
		t.Errorf("%d keys for %d subjects: some rings missed a race", n, len(ids))
	}
}

// currentID returns the id of a subject's key.
func currentID(t *testing.T, k *keyring.Ring, subject string) seal.KeyID {
	t.Helper()
	key, err := k.Current(subject)
	if err != nil {
		t.Fatal(err)
	}
	return key.ID
}

func TestKeyOfAFailedWriteIsNotUsedUntilItIsReadBack(t *testing.T) {
	for _, applied := range []bool{false, true} {
		t.Run(fmt.Sprintf("applied %v", applied), func(t *testing.T) {
			b := keyringtest.NewBox(t, 1)
			keks := keyringtest.KEKs(t, "a")
			w := &keyringtest.FaultyWriter{Writer: b.Writer(), Applied: applied}
			w.Fail = func(*pipeline.Record) bool { return w.Failed == 0 }
			k, other := b.Ring(keks, w), b.Ring(keks, b.Writer())
			if err := k.Ensure(t.Context(), []string{"u-1"}); !errors.Is(err, keyringtest.ErrFault) || !strings.Contains(err.Error(), keyringtest.KeyTopic) {
				t.Fatalf("the write failed, and Ensure returns %v", err)
			}
			// The next attempts of both rings result in one key.
			if err := k.Ensure(t.Context(), []string{"u-1"}); err != nil {
				t.Fatal(err)
			}
			if err := other.Ensure(t.Context(), []string{"u-1"}); err != nil {
				t.Fatal(err)
			}
			mine, theirs, late := currentID(t, k, "u-1"), currentID(t, other, "u-1"), currentID(t, b.Ring(keks, nil), "u-1")
			if mine != theirs || mine != late {
				t.Errorf("one ring uses %s, another %s, a later one %s", mine, theirs, late)
			}
		})
	}
}

func TestEnsureFailsWhileTheTopicIsNotRead(t *testing.T) {
	b := keyringtest.NewBox(t, 1)
	k := keyring.New(b.Config(keyringtest.KEKs(t, "a"), b.Writer())) // Run is not called
	cause := errors.New("no progress")
	ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, cause)
	defer cancel()
	if err := k.Ensure(ctx, []string{"u-1"}); !errors.Is(err, cause) {
		t.Errorf("Ensure: %v", err)
	}
	if err := k.Loaded(ctx); !errors.Is(err, cause) {
		t.Errorf("Loaded: %v", err)
	}
}

func isMark(r *pipeline.Record) bool { return strings.HasPrefix(string(r.Key), "erased/") }
func isNull(r *pipeline.Record) bool { return !isMark(r) }

// One write of DestroyKeys fails: the error says so, and a second call completes the
// work.
func TestDestroyKeysCompletesAfterAFailedWrite(t *testing.T) {
	for name, c := range map[string]struct {
		fail    func(*pipeline.Record) bool
		applied bool
		marked  bool // after the first attempt
		gone    bool
	}{
		"mark, not applied": {isMark, false, false, false},
		"mark, applied":     {isMark, true, true, false},
		"null, not applied": {isNull, false, true, false},
		"null, applied":     {isNull, true, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			b := keyringtest.NewBox(t, 2)
			keks, w := keyringtest.KEKs(t, "a"), b.Writer()
			k := b.Ring(keks, w)
			if err := k.Ensure(t.Context(), []string{"u-1", "u-2", "u-3"}); err != nil {
				t.Fatal(err)
			}
			if _, err := b.Destroy(&keyringtest.FaultyWriter{Writer: w, Fail: c.fail, Applied: c.applied}, "u-1"); !errors.Is(err, keyringtest.ErrFault) || !strings.Contains(err.Error(), "run the command again") {
				t.Fatalf("%v", err)
			}
			if marked, gone := b.Ring(keks, nil).Forgotten("u-1"), keysGone(b, "u-1"); marked != c.marked || gone != c.gone {
				t.Errorf("after the fault: marked %v, gone %v", marked, gone)
			}
			n, err := b.Destroy(w, "u-1")
			if want := map[bool]int{true: 0, false: 1}[c.gone]; err != nil || n != want {
				t.Fatalf("second call: %d keys destroyed, want %d; %v", n, want, err)
			}
			if _, err := b.Ring(keks, nil).Current("u-1"); !errors.Is(err, seal.ErrErased) || !keysGone(b, "u-1") {
				t.Errorf("after the second call: %v, gone %v", err, keysGone(b, "u-1"))
			}
			currentID(t, k, "u-2")
			currentID(t, k, "u-3")
			// A forgotten subject gets no new key.
			if err := k.Ensure(t.Context(), []string{"u-1"}); err != nil {
				t.Error(err)
			}
			if n := len(b.DataKeys()); n != 3 {
				t.Errorf("%d keys were created for 3 subjects", n)
			}
		})
	}
}

// Somebody writes a null over the mark of a forgotten subject. The subject stays forgotten for
// rings that run, that start later, and that read a topic of which only the null is left. A
// ring that can write writes the mark again.
func TestAnErasureSurvivesANullInThePlaceOfItsMark(t *testing.T) {
	b := keyringtest.NewBox(t, 2)
	keks, w := keyringtest.KEKs(t, "a"), b.Writer()
	only := b.Ring(keks, nil)
	k := b.Ring(keks, w)
	if err := k.Ensure(t.Context(), []string{"u-1", "u-2"}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Destroy(w, "u-1"); err != nil {
		t.Fatal(err)
	}
	forgotten := func(when string, k *keyring.Ring) {
		t.Helper()
		if _, err := k.Current("u-1"); !errors.Is(err, seal.ErrErased) || !k.Forgotten("u-1") || k.Forgotten("u-2") {
			t.Errorf("%s: %v", when, err)
		}
	}
	put := func(key string, value []byte) {
		t.Helper()
		results := keyring.NewResults(1)
		w.Write(t.Context(), &pipeline.Record{Topic: keyringtest.KeyTopic, Partition: kafka.PartitionOf([]byte("u-1"), 2), Key: []byte(key), Value: value, Time: harness.Now}, results.Add)
		if err := results.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	put("erased/u-1", nil)
	marks := func() (last []byte, n int) {
		for p := range int32(2) {
			if _, err := kafka.ReadSettled(t.Context(), b.Config(nil, nil).Kafka, keyringtest.KeyTopic, p, func(r *pipeline.Record) error {
				if string(r.Key) == "erased/u-1" {
					last, n = append([]byte(nil), r.Value...), n+1
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
		}
		return last, n
	}
	for last, n := marks(); n < 3 || len(last) == 0; last, n = marks() {
		if t.Context().Err() != nil {
			t.Fatal("the mark was not written again")
		}
	}
	if err := k.Ensure(t.Context(), []string{"u-1", "u-3"}); err != nil {
		t.Fatal(err)
	}
	for when, ring := range map[string]*keyring.Ring{"running": k, "running without a writer": only, "started later": b.Ring(keks, nil)} {
		if when == "running without a writer" {
			currentID(t, k, "u-3")
		}
		forgotten(when, ring)
	}

	// Only the null is left, and no ring that can write runs.
	fresh := keyringtest.NewBox(t, 2)
	w = fresh.Writer()
	put("erased/u-1", nil)
	forgotten("after compaction", fresh.Ring(keks, nil))
	writes := fresh.Ring(keks, w)
	if err := writes.Ensure(t.Context(), []string{"u-1"}); err != nil {
		t.Fatal(err)
	}
	forgotten("after compaction, with a writer", writes)
	if n := len(fresh.DataKeys()); n != 0 {
		t.Errorf("%d keys of a forgotten subject were created", n)
	}
}

// keysGone reports whether no key of the subject exists on the topic.
func keysGone(b *keyringtest.Box, subject string) bool {
	for key, exists := range b.DataKeys() {
		if strings.HasSuffix(key, "/"+subject) && exists {
			return false
		}
	}
	return true
}

func TestRingSaysThatItsTopicIsNotFollowed(t *testing.T) {
	b := keyringtest.NewBox(t, 1)
	cfg, reg := b.Config(keyringtest.KEKs(t, "a"), b.Writer()), prometheus.NewRegistry()
	cfg.Topic, cfg.Metrics = "late.keys", reg
	k := keyring.New(cfg)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- k.Run(ctx) }()
	defer func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	following := func() (n float64) {
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			if f.GetName() == "millrace_following" {
				n = f.GetMetric()[0].GetGauge().GetValue()
			}
		}
		return n
	}
	harness.Awaited(t, "the missing topic", func() bool {
		err := k.Following()
		return err != nil && strings.Contains(err.Error(), "the key topic late.keys is not followed: reading topic late.keys: ") && following() == 0
	})
	if _, err := kafka.EnsureTopics(t.Context(), cfg.Kafka, []kafka.TopicSpec{{Name: cfg.Topic, Partitions: 1}}, true); err != nil {
		t.Fatal(err)
	}
	harness.Awaited(t, "the topic", func() bool { return k.Following() == nil && following() == 1 })
}
