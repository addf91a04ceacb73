package seal

import (
	"crypto/cipher"
	"encoding/base64"
	"fmt"
	"regexp"
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

// wrapped is a wrapped data key.
type wrapped struct {
	id  KeyID
	kek string // id of the key-encryption key
	box []byte // nonce, encrypted data key and tag
}

// wrapping returns the associated data of a wrapped key.
func wrapping(subject string, id KeyID) []byte {
	return append(append([]byte("millrace key 1\x00"), id[:]...), subject...)
}

// wrap generates a data key for a subject and returns it wrapped by the newest key.
func (k *KEKs) wrap(subject string) wrapped {
	w := wrapped{kek: k.newest}
	var key [keySize]byte
	randomBytes(key[:])
	randomBytes(w.id[:])
	w.box = k.byID[k.newest].Seal(nil, nil, key[:], wrapping(subject, w.id))
	return w
}

// unwrap returns the data key. An error is ErrNoKEK.
func (k *KEKs) unwrap(subject string, w wrapped) (*DataKey, error) {
	var aead cipher.AEAD
	if k != nil {
		aead = k.byID[w.kek]
	}
	if aead == nil {
		return nil, fmt.Errorf("%w: %s", ErrNoKEK, w.kek)
	}
	key, err := aead.Open(nil, nil, w.box, wrapping(subject, w.id))
	if err == nil && len(key) != keySize {
		err = ErrTampered
	}
	if err != nil {
		return nil, fmt.Errorf("key-encryption key %s cannot unwrap a key of the subject; it is not the key that wrapped it, or the record was changed: %w", w.kek, ErrNoKEK)
	}
	d := &DataKey{ID: w.id}
	d.aead, err = newAEAD(key)
	return d, err
}
