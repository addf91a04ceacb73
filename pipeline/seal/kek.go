package seal

import (
	"crypto/cipher"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// KEKs are key-encryption keys, which wrap data keys. The newest wraps new data keys; the
// others only unwrap. They are immutable and safe for concurrent use.
type KEKs struct {
	newest string
	byID   map[string]cipher.AEAD
}

var kekID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// ParseKEKs parses key-encryption keys, one per line: its id and its 32 bytes in base64,
// the newest key last. It ignores empty lines and lines that begin with #. An error
// contains no key material, only line numbers and ids.
func ParseKEKs(text string) (*KEKs, error) {
	k := &KEKs{byID: map[string]cipher.AEAD{}}
	for i, line := range strings.Split(text, "\n") {
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		words := strings.Fields(line)
		if len(words) != 2 {
			return nil, fmt.Errorf("line %d: want two words, an id and a key in base64, not %d", i+1, len(words))
		}
		id := words[0]
		if !kekID.MatchString(id) {
			return nil, fmt.Errorf("line %d: an id is letters, digits, dots, dashes and underscores, at most 64; is the key before the id?", i+1)
		}
		if k.byID[id] != nil {
			return nil, fmt.Errorf("line %d: duplicate id %s", i+1, id)
		}
		key, err := base64.StdEncoding.Strict().DecodeString(words[1])
		if err != nil || len(key) != keySize {
			return nil, fmt.Errorf("line %d: the key of %s is not %d bytes in base64; make one with: openssl rand -base64 %d", i+1, id, keySize, keySize)
		}
		if k.byID[id], err = newAEAD(key); err != nil {
			return nil, err
		}
		k.newest = id
	}
	if k.newest == "" {
		return nil, fmt.Errorf("there is no key in it; each line is an id and the output of: openssl rand -base64 %d", keySize)
	}
	return k, nil
}

// wrapped is a data key, wrapped by one key-encryption key or, while it moves from one to
// another, by several.
type wrapped struct {
	id    KeyID
	boxes []box // the newest last; at least one
}

// box is a data key wrapped by a key-encryption key.
type box struct {
	kek   string // id of the key-encryption key
	bytes []byte // nonce, encrypted data key and tag
}

// wrapping returns the associated data of a wrapped key.
func wrapping(subject string, id KeyID) []byte {
	return append(append([]byte("millrace key 1\x00"), id[:]...), subject...)
}

// wrap generates a data key for a subject and returns it wrapped by the newest key.
func (k *KEKs) wrap(subject string) wrapped {
	var w wrapped
	var key [keySize]byte
	randomBytes(key[:])
	randomBytes(w.id[:])
	w.boxes = []box{k.seal(subject, w.id, key[:])}
	return w
}

// seal wraps a data key by the newest key.
func (k *KEKs) seal(subject string, id KeyID, key []byte) box {
	return box{k.newest, k.byID[k.newest].Seal(nil, nil, key, wrapping(subject, id))}
}

// unwrap returns the data key. An error is ErrNoKEK.
func (k *KEKs) unwrap(subject string, w wrapped) (*DataKey, error) {
	key, err := k.open(subject, w)
	if err != nil {
		return nil, err
	}
	d := &DataKey{ID: w.id}
	d.aead, err = newAEAD(key)
	return d, err
}

// open returns the bytes of the data key, from the newest box that can be opened.
func (k *KEKs) open(subject string, w wrapped) (key []byte, err error) {
	for _, b := range slices.Backward(w.boxes) {
		if key, err = k.openBox(subject, w.id, b); err == nil {
			return key, nil
		}
	}
	return nil, err
}

func (k *KEKs) openBox(subject string, id KeyID, b box) ([]byte, error) {
	var aead cipher.AEAD
	if k != nil {
		aead = k.byID[b.kek]
	}
	if aead == nil {
		return nil, fmt.Errorf("%w: %s", ErrNoKEK, b.kek)
	}
	key, err := aead.Open(nil, nil, b.bytes, wrapping(subject, id))
	if err == nil && len(key) != keySize {
		err = ErrTampered
	}
	if err != nil {
		return nil, fmt.Errorf("key-encryption key %s cannot unwrap a key of the subject; it is not the key that wrapped it, or the record was changed: %w", b.kek, ErrNoKEK)
	}
	return key, nil
}

// Newest returns the id of the key that wraps new data keys.
func (k *KEKs) Newest() string { return k.newest }

// Has reports whether there is a key with the id.
func (k *KEKs) Has(id string) bool { return k.byID[id] != nil }

// Rewrap returns the record of a data key with the key wrapped by the newest key-encryption
// key, too. The earlier ones stay, so that a process that does not have the newest one
// continues, except for retire, which is not the newest. changed is false if the record is so already. keks are the
// ids of the key-encryption keys of the record that is returned.
//
// The newest key must open what it wraps before another one goes. An error is [ErrNoKEK], or
// that of a record that cannot be parsed; the record is then unchanged.
func (k *KEKs) Rewrap(in Record, retire string) (out Record, keks []string, changed bool, err error) {
	subject, id, isKey, err := parseKey(in.Key)
	if err != nil || !isKey || in.Value == nil {
		return in, nil, false, err
	}
	v, w, err := parseValue(id, in.Value)
	if err != nil {
		return in, nil, false, err
	}
	if last := w.boxes[len(w.boxes)-1]; last.kek != k.newest {
		key, err := k.open(subject, w)
		if err != nil {
			return in, w.keks(), false, err
		}
		w.boxes, changed = append(w.boxes, k.seal(subject, id, key)), true
	} else if _, err := k.openBox(subject, id, last); err != nil {
		return in, w.keks(), false, err
	}
	if kept := slices.DeleteFunc(slices.Clone(w.boxes), func(b box) bool { return b.kek == retire }); retire != k.newest && len(kept) < len(w.boxes) {
		w.boxes, changed = kept, true
	}
	if !changed {
		return in, w.keks(), false, nil
	}
	out.Key = in.Key
	out.Value, err = json.Marshal(newKeyRecord(w, v.Time))
	return out, w.keks(), true, err
}

func (w wrapped) keks() (ids []string) {
	for _, b := range w.boxes {
		ids = append(ids, b.kek)
	}
	return ids
}
