package keyring_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"millrace/pipeline"
	"millrace/pipeline/harness"
	"millrace/pipeline/kafka"
	"millrace/pipeline/keyring"
	"millrace/pipeline/keyring/keyringtest"
	"millrace/pipeline/seal"
)

// Producers that make keys for the same subjects at the same time use the same, and
// so does who comes later.
func TestProducersThatMakeAKeyAtOnceAgree(t *testing.T) {
	const partitions, rounds, racers = 3, 20, 4
	b := keyringtest.NewKeyBox(t, partitions)
	keks := keyringtest.TestKEKs(t, "a")
	var rings []*keyring.Ring
	var gates []*keyringtest.GatedWriter
	for i := range racers {
		rings = append(rings, b.Keyring(partitions, keks))
		gates = append(gates, &keyringtest.GatedWriter{RecordWriter: rings[i].Writer})
		rings[i].Writer = gates[i]
	}
	ids := map[string]map[seal.KeyID]bool{}
	for round := range rounds {
		subjects := []string{fmt.Sprintf("u-%d", round), fmt.Sprintf("v/%d", round)}
		var ready, work sync.WaitGroup
		ready.Add(racers)
		for i, k := range rings {
			gates[i].Gate = sync.OnceFunc(func() {
				ready.Done()
				ready.Wait() // all have seen that there is no key
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
				key, err := k.Cache.Current(s)
				if err != nil {
					t.Fatal(err)
				}
				ids[s][key.ID] = true
			}
		}
	}
	late := b.Keyring(partitions, keks)
	for s, of := range ids {
		key, err := late.Cache.Current(s)
		if err != nil {
			t.Fatal(err)
		}
		if of[key.ID] = true; len(of) != 1 {
			t.Errorf("%s has the keys %v", s, of)
		}
	}
	if n := len(b.Records(partitions)); n != racers*len(ids) {
		t.Errorf("%d keys for %d subjects: not all were in each race", n, len(ids))
	}
}

func TestAKeyWhoseWriteFailedIsNeverGuessed(t *testing.T) {
	for _, applied := range []bool{false, true} {
		t.Run(fmt.Sprintf("applied %v", applied), func(t *testing.T) {
			b := keyringtest.NewKeyBox(t, 1)
			k, other := b.Keyring(1, keyringtest.TestKEKs(t, "a")), b.Keyring(1, keyringtest.TestKEKs(t, "a"))
			real := k.Writer
			w := &keyringtest.FaultyWriter{RecordWriter: real, Applied: applied}
			w.Fail = func(*pipeline.Record) bool { return w.Failed == 0 }
			k.Writer = w
			if err := k.Ensure(t.Context(), []string{"u-1"}); !errors.Is(err, keyringtest.ErrFault) || !strings.Contains(err.Error(), keyringtest.TestKeyTopic) {
				t.Fatalf("the write failed, and ensure says %v", err)
			}
			// Again, by either: there is one key, known to both.
			if err := k.Ensure(t.Context(), []string{"u-1"}); err != nil {
				t.Fatal(err)
			}
			if err := other.Ensure(t.Context(), []string{"u-1"}); err != nil {
				t.Fatal(err)
			}
			mine, err := k.Cache.Current("u-1")
			if err != nil {
				t.Fatal(err)
			}
			theirs, err := other.Cache.Current("u-1")
			if err != nil {
				t.Fatal(err)
			}
			if mine.ID != theirs.ID {
				t.Errorf("one uses %s, the other %s", mine.ID, theirs.ID)
			}
			if late, err := b.Keyring(1, keyringtest.TestKEKs(t, "a")).Cache.Current("u-1"); err != nil || late.ID != mine.ID {
				t.Errorf("who comes later has %v, %v", late, err)
			}
		})
	}
}

// A subject is forgotten although one of the writes fails, once or for all: the
// command says so, and when it is run again it does the rest.
func TestDestroyingKeysFailsAndIsDoneAgain(t *testing.T) {
	mark := func(r *pipeline.Record) bool { return strings.HasPrefix(string(r.Key), "erased/") }
	null := func(r *pipeline.Record) bool { return !mark(r) }
	for name, c := range map[string]struct {
		fail    func(*pipeline.Record) bool
		applied bool
		marked  bool // after the first attempt
		gone    bool
	}{
		"mark, not applied": {mark, false, false, false},
		"mark, applied":     {mark, true, true, false},
		"null, not applied": {null, false, true, false},
		"null, applied":     {null, true, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			b := keyringtest.NewKeyBox(t, 2)
			k := b.Keyring(2, keyringtest.TestKEKs(t, "a"))
			if err := k.Ensure(t.Context(), []string{"u-1", "u-2", "u-3"}); err != nil {
				t.Fatal(err)
			}
			partition := kafka.PartitionOf([]byte("u-1"), 2)
			read := func(f func(*pipeline.Record) error) error {
				_, err := kafka.ReadSettled(t.Context(), b.Cfg, keyringtest.TestKeyTopic, partition, f)
				return err
			}
			destroy := func(w keyring.RecordWriter) (int, error) {
				return keyring.DestroyKeys(t.Context(), w, keyringtest.TestKeyTopic, partition, "u-1", harness.Now, read)
			}
			gone := func() bool {
				for key, there := range b.Records(2) {
					if strings.HasSuffix(key, "/u-1") && there {
						return false
					}
				}
				return true
			}
			if _, err := destroy(&keyringtest.FaultyWriter{RecordWriter: k.Writer, Fail: c.fail, Applied: c.applied}); !errors.Is(err, keyringtest.ErrFault) || !strings.Contains(err.Error(), "run the command again") {
				t.Fatalf("%v", err)
			}
			late := b.Keyring(2, keyringtest.TestKEKs(t, "a"))
			if late.Cache.Forgotten("u-1") != c.marked || gone() != c.gone {
				t.Errorf("after the fault: marked %v, gone %v", late.Cache.Forgotten("u-1"), gone())
			}
			n, err := destroy(k.Writer)
			if want := map[bool]int{true: 0, false: 1}[c.gone]; err != nil || n != want {
				t.Fatalf("again: %d keys destroyed, want %d; %v", n, want, err)
			}
			if _, err := b.Keyring(2, keyringtest.TestKEKs(t, "a")).Cache.Current("u-1"); !errors.Is(err, seal.ErrErased) || !gone() {
				t.Errorf("afterwards: %v, gone %v", err, gone())
			}
			for _, s := range []string{"u-2", "u-3"} {
				if _, err := k.Cache.Current(s); err != nil {
					t.Errorf("another subject: %v", err)
				}
			}
			// Nobody makes it another.
			if err := k.Ensure(t.Context(), []string{"u-1"}); err != nil {
				t.Error(err)
			}
			if n := len(b.Records(2)); n != 3 {
				t.Errorf("%d keys were made for 3 subjects", n)
			}
		})
	}
}
