package keyring_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/kafka"
	"millrace/pipeline/keyring"
	"millrace/pipeline/keyring/keyringtest"
	"millrace/pipeline/seal"
)

// rewrapping returns a rewrapping of the box's key topic.
func rewrapping(t *testing.T, b *keyringtest.Box, keks *seal.KEKs, retire string) *keyring.Rewrapping {
	t.Helper()
	return &keyring.Rewrapping{
		KEKs: keks, Retire: retire, Topic: keyringtest.KeyTopic, Now: time.Now,
		Read: func(ctx context.Context, partition int32, f func(*pipeline.Record) error) error {
			_, err := kafka.ReadSettled(ctx, b.Config(nil, nil).Kafka, keyringtest.KeyTopic, partition, f)
			return err
		},
	}
}

// ciphertexts returns a ciphertext of each subject's name under its current key.
func ciphertexts(t *testing.T, k *keyring.Ring, subjects []string) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	for _, s := range subjects {
		key, err := k.Current(s)
		if err != nil {
			t.Fatal(err)
		}
		out[s] = key.AppendBytes(nil, []byte(s), seal.Place{Subject: s, Field: "f"})
	}
	return out
}

// readable counts the ciphertexts that a fresh reader of the topic with these
// key-encryption keys can decrypt.
func readable(t *testing.T, b *keyringtest.Box, keks *seal.KEKs, partitions int, all map[string][]byte) (n int) {
	t.Helper()
	ring := seal.NewRing(keks)
	for p := range int32(partitions) {
		if _, err := kafka.ReadSettled(t.Context(), b.Config(nil, nil).Kafka, keyringtest.KeyTopic, p, func(r *pipeline.Record) error {
			return ring.Apply(seal.Record{Key: r.Key, Value: r.Value})
		}); err != nil {
			t.Fatal(err)
		}
	}
	for subject, ciphertext := range all {
		box, _, err := seal.ParseBytes(ciphertext)
		if err != nil {
			t.Fatal(err)
		}
		key, err := ring.Find(subject, box.KeyID)
		if err != nil {
			continue
		}
		if plain, err := key.Open(box, seal.Place{Subject: subject, Field: "f"}); err != nil || string(plain) != subject {
			t.Errorf("%s is decrypted as %q, %v", subject, plain, err)
		}
		n++
	}
	return n
}

// The run ends after each number of writes, as by a kill. Whatever was written, every
// ciphertext stays readable, with the old key-encryption key until it is retired, and the
// next run does the rest.
func TestKeysMoveToANewKeyEncryptionKeyInSpiteOfKills(t *testing.T) {
	const partitions, n = 2, 5
	oldest, both, newest := keyringtest.KEKs(t, "a"), keyringtest.KEKs(t, "a", "b"), keyringtest.KEKs(t, "b")
	subjects := make([]string, n)
	for i := range subjects {
		subjects[i] = fmt.Sprint("u-", i)
	}
	for kill := range n {
		for _, applied := range []bool{false, true} {
			b := keyringtest.NewBox(t, partitions)
			w := b.Writer()
			writer := b.Ring(oldest, w) // runs all the time, and has the old key-encryption key only
			if err := writer.Ensure(t.Context(), subjects); err != nil {
				t.Fatal(err)
			}
			all := ciphertexts(t, writer, subjects)
			killed := func(retire string) {
				t.Helper()
				left := kill
				dies := &keyringtest.FaultyWriter{Writer: w, Applied: applied, Fail: func(*pipeline.Record) bool { left--; return left < 0 }}
				if _, err := rewrapping(t, b, both, retire).Run(t.Context(), dies, partitions); !errors.Is(err, keyringtest.ErrFault) || !strings.Contains(err.Error(), "run the command again") {
					t.Fatalf("killed after %d writes: %v", kill, err)
				}
			}
			finished := func(retire string) keyring.Rewrapped {
				t.Helper()
				r, err := rewrapping(t, b, both, retire).Run(t.Context(), w, partitions)
				if err != nil || r.Keys != n || r.By["b"] != n || len(r.Left) > 0 {
					t.Fatalf("%+v, %v", r, err)
				}
				return r
			}
			killed("")
			if a, ab := readable(t, b, oldest, partitions, all), readable(t, b, both, partitions, all); a != n || ab != n {
				t.Errorf("killed after %d writes: %d readable with the old key, %d with both", kill, a, ab)
			}
			if r := finished(""); r.By["a"] != n || r.Only["a"]+r.Only["b"] != 0 {
				t.Errorf("%+v", r)
			}
			if again := finished(""); again.Changed != 0 {
				t.Errorf("a second run changed %d keys", again.Changed)
			}
			if a, bb := readable(t, b, oldest, partitions, all), readable(t, b, newest, partitions, all); a != n || bb != n {
				t.Errorf("%d readable with the old key, %d with the new one", a, bb)
			}
			for subject := range all { // the running writer has read the new records
				if err := writer.Ensure(t.Context(), []string{"late-" + subject}); err != nil {
					t.Fatal(err)
				}
				currentID(t, writer, subject)
			}

			const n2 = 2 * n
			for subject, ciphertext := range ciphertexts(t, writer, []string{"late-u-0", "late-u-1", "late-u-2", "late-u-3", "late-u-4"}) {
				all[subject] = ciphertext
			}
			killed("a")
			if ab := readable(t, b, both, partitions, all); ab != n2 {
				t.Errorf("killed after %d writes: %d of %d readable with both", kill, ab, n2)
			}
			r, err := rewrapping(t, b, both, "a").Run(t.Context(), w, partitions)
			if err != nil || r.By["a"] != 0 || r.By["b"] != n2 || r.Only["b"] != n2 || r.Keys != n2 {
				t.Errorf("%+v, %v", r, err)
			}
			if a, bb := readable(t, b, oldest, partitions, all), readable(t, b, newest, partitions, all); a != 0 || bb != n2 {
				t.Errorf("after the end: %d readable with the old key, %d of %d with the new one", a, bb, n2)
			}
			if more := b.DataKeys(); len(more) != n2 {
				t.Errorf("%d data keys for %d subjects", len(more), n2)
			}
		}
	}
}

// A key that cannot be unwrapped stays as it is, and its subject is named.
func TestSubjectsWhoseKeysCannotBeUnwrappedAreLeft(t *testing.T) {
	b := keyringtest.NewBox(t, 1)
	w := b.Writer()
	for kek, subject := range map[string]string{"a": "u-1", "lost": "u-2"} {
		if err := b.Ring(keyringtest.KEKs(t, kek), w).Ensure(t.Context(), []string{subject}); err != nil {
			t.Fatal(err)
		}
	}
	before := b.DataKeys()
	r, err := rewrapping(t, b, keyringtest.KEKs(t, "a", "b"), "lost").Run(t.Context(), w, 1)
	if err != nil || r.Keys != 2 || r.Changed != 1 || r.By["lost"] != 1 || r.Only["lost"] != 1 || r.By["b"] != 1 || len(r.Left) != 1 || r.Left[0].Subject != "u-2" || !strings.Contains(r.Left[0].Reason, "lost") {
		t.Errorf("%+v, %v", r, err)
	}
	if after := b.DataKeys(); len(after) != len(before) {
		t.Errorf("%v, before %v", after, before)
	}
	currentID(t, b.Ring(keyringtest.KEKs(t, "lost"), nil), "u-2")
}

// A subject is forgotten between the reading of its key and the writing of the new record.
// Its key does not come back, also if the run is killed there.
func TestAForgottenSubjectsKeyDoesNotComeBack(t *testing.T) {
	for _, kill := range []bool{false, true} {
		b := keyringtest.NewBox(t, 1)
		w := b.Writer()
		keks := keyringtest.KEKs(t, "a", "b")
		if err := b.Ring(keyringtest.KEKs(t, "a"), w).Ensure(t.Context(), []string{"u-1", "u-2"}); err != nil {
			t.Fatal(err)
		}
		x := rewrapping(t, b, keks, "a")
		read, reads := x.Read, 0
		x.Read = func(ctx context.Context, partition int32, f func(*pipeline.Record) error) error {
			if reads++; reads == 2 && kill {
				return errors.New("killed")
			}
			err := read(ctx, partition, f)
			if reads == 1 {
				if _, err := b.Destroy(w, "u-1"); err != nil {
					t.Error(err)
				}
			}
			return err
		}
		r, err := x.Run(t.Context(), w, 1)
		if kill {
			if err == nil || keysGone(b, "u-1") {
				t.Fatalf("the run was not killed between writing and destroying: %v", err)
			}
			if _, err := b.Ring(keks, nil).Current("u-1"); !errors.Is(err, seal.ErrErased) {
				t.Errorf("the subject is not forgotten any more: %v", err)
			}
			r, err = rewrapping(t, b, keks, "a").Run(t.Context(), w, 1)
		}
		if err != nil || r.Destroyed != 1 || !keysGone(b, "u-1") {
			t.Errorf("%+v, %v; gone %v", r, err, keysGone(b, "u-1"))
		}
		currentID(t, b.Ring(keyringtest.KEKs(t, "b"), nil), "u-2")
	}
}
