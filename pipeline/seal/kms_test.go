package seal_test

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"millrace/pipeline/seal"
)

// memoryKMS is a KMS that remembers what it has wrapped.
type memoryKMS struct {
	keys  [][]byte
	ids   []string
	loose bool  // unwraps under every id
	other bool  // returns another key
	err   error // of Unwrap
}

func (m *memoryKMS) Wrap(_ context.Context, key []byte, id string) ([]byte, error) {
	m.keys, m.ids = append(m.keys, bytes.Clone(key)), append(m.ids, id)
	return []byte{byte(len(m.keys))}, nil
}

func (m *memoryKMS) Unwrap(_ context.Context, wrapped []byte, id string) ([]byte, error) {
	i := int(wrapped[0]) - 1
	switch {
	case m.err != nil:
		return nil, m.err
	case m.ids[i] != id && !m.loose:
		return nil, seal.ErrRefused
	case m.other:
		return make([]byte, 32), nil
	}
	return bytes.Clone(m.keys[i]), nil
}

const gcpKey = "gcp-kms://projects/p/locations/global/keyRings/r/cryptoKeys/k"

func unlock(t *testing.T, k *seal.KEKs, kms seal.KMS) {
	t.Helper()
	for _, l := range k.Locked() {
		key, err := kms.Unwrap(t.Context(), l.Wrapped, l.ID)
		if err == nil {
			err = k.Unlock(l.ID, key)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestKeysMoveFromAFileToAKMS(t *testing.T) {
	kms := &memoryKMS{}
	line, err := seal.NewLine(t.Context(), kms, gcpKey, "kms")
	if err != nil {
		t.Fatal(err)
	}
	if want := "kms " + gcpKey + " AQ==\n"; line != want {
		t.Errorf("the line is %q, want %q", line, want)
	}
	old := keks(t, "file")
	record, err := old.NewKey("u-1", now)
	if err != nil {
		t.Fatal(err)
	}
	both, err := seal.ParseKEKs(kekLine("file") + line)
	if err != nil {
		t.Fatal(err)
	}
	if l := both.Locked(); len(l) != 1 || l[0].Line != 2 || l[0].ID != "kms" || l[0].URI != gcpKey || both.Newest() != "kms" || both.Has("kms") {
		t.Errorf("locked: %+v, newest %s", l, both.Newest())
	}
	unlock(t, both, kms)
	moved, by, changed, err := both.Rewrap(record, "file")
	if err != nil || !changed || !slices.Equal(by, []string{"kms"}) {
		t.Fatalf("%v, changed %v, %v", by, changed, err)
	}
	only, err := seal.ParseKEKs(line)
	if err != nil {
		t.Fatal(err)
	}
	ring := seal.NewRing(only)
	if err := ring.Apply(moved); err != nil {
		t.Fatal(err)
	}
	if _, err := ring.Current("u-1"); !errors.Is(err, seal.ErrNoKEK) {
		t.Errorf("before the key is unlocked: %v", err)
	}
	unlock(t, only, kms)
	if _, err := ring.Current("u-1"); err != nil {
		t.Error(err)
	}
	back, err := seal.ParseKEKs(line + kekLine("file"))
	if err != nil {
		t.Fatal(err)
	}
	unlock(t, back, kms)
	if _, by, _, err := back.Rewrap(moved, "kms"); err != nil || !slices.Equal(by, []string{"file"}) {
		t.Errorf("back to the file: %v, %v", by, err)
	}
}

func TestOnlyKeysThatAreLockedAreUnlocked(t *testing.T) {
	k, err := seal.ParseKEKs(kekLine("file") + "kms " + gcpKey + " AQ==")
	if err != nil {
		t.Fatal(err)
	}
	for id, want := range map[string]string{"file": "file is not locked", "none": "none is not locked"} {
		if err := k.Unlock(id, make([]byte, 32)); err == nil || err.Error() != want {
			t.Errorf("%s: %v", id, err)
		}
	}
	if err := k.Unlock("kms", make([]byte, 31)); err == nil || !strings.Contains(err.Error(), "the KMS has unwrapped 31 bytes, not 32") || k.Has("kms") {
		t.Errorf("a short key: %v", err)
	}
}

func TestNewLinesNeedAKMSThatReturnsTheKeyUnderItsIdOnly(t *testing.T) {
	down := errors.New("down")
	for want, kms := range map[string]*memoryKMS{
		"does not bind associated data": {loose: true},
		"does not return the key":       {other: true},
		"unwrapping the key again":      {err: down},
	} {
		line, err := seal.NewLine(t.Context(), kms, gcpKey, "id")
		if line != "" || err == nil || !strings.Contains(err.Error(), want) || errors.Is(err, seal.ErrRefused) == (kms.err != nil) {
			t.Errorf("%q: %q, %v", want, line, err)
		}
	}
}
