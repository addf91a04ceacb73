package seal

import (
	"bytes"
	"context"
	"crypto/cipher"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// KEKs are key-encryption keys, which wrap data keys. The newest wraps new data keys; the
// others only unwrap. Keys that a KMS has wrapped are locked until Unlock. One goroutine
// unlocks all of them before others use the keys; from then on they are immutable and safe
// for concurrent use.
type KEKs struct {
	newest string
	byID   map[string]cipher.AEAD // nil: locked
	locked []Locked
}

// Locked is a key-encryption key that a key management service (KMS) has wrapped.
type Locked struct {
	Line    int // in the text
	ID      string
	URI     string // of the key of the KMS
	Wrapped []byte
}

// KMS is a key of a key management service, which wraps key-encryption keys. id is the id of
// the key-encryption key, and the associated data: the key can be unwrapped only under its id.
//
// An error that a retry cannot fix is [ErrRefused].
type KMS interface {
	Wrap(ctx context.Context, key []byte, id string) (wrapped []byte, err error)
	Unwrap(ctx context.Context, wrapped []byte, id string) (key []byte, err error)
}

// ErrRefused means that a KMS answered, and refused: the caller lacks the permission, or the
// key or the ciphertext is another one.
var ErrRefused = errors.New("refused")

const (
	kekWords   = "want an id and 32 bytes in base64, or an id, the URI of a key of a KMS and the wrapped key in base64"
	maxWrapped = 8 << 10 // bytes of a wrapped key-encryption key; AWS has the largest, up to 6 KiB
)

var (
	kekID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

	// No @ before the path: the URI is printed, so it must not have a password.
	kmsURI = regexp.MustCompile(`^(aws-kms|gcp-kms|hcvault)://[A-Za-z0-9.:\[\]_-]+(/[A-Za-z0-9./:@_+=-]*)?$`)
)

// CheckKEKID returns an error if a text cannot be the id of a key-encryption key.
func CheckKEKID(id string) error {
	if !kekID.MatchString(id) {
		return errors.New("an id is letters, digits, dots, dashes and underscores, at most 64")
	}
	return nil
}

// CheckURI returns an error, without the URI, if it cannot be that of a key of a KMS.
func CheckURI(uri string) error {
	if !kmsURI.MatchString(uri) {
		return errors.New("the URI of the key of a KMS begins with aws-kms://arn:, gcp-kms://projects/ or hcvault://HOST:PORT/, and has no user name, password or query")
	}
	return nil
}

// ParseKEKs parses key-encryption keys, one per line, the newest key last. A line has an id
// and 32 bytes in base64, or an id, the URI of a key of a KMS and in base64 what the KMS has
// wrapped. ParseKEKs ignores empty lines and lines that begin with #. An error contains no
// key material, only line numbers and ids.
func ParseKEKs(text string) (*KEKs, error) {
	k := &KEKs{byID: map[string]cipher.AEAD{}}
	for i, line := range strings.Split(text, "\n") {
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		words := strings.Fields(line)
		if len(words) != 2 && len(words) != 3 {
			return nil, fmt.Errorf("line %d: %s, not %s", i+1, kekWords, plural(len(words), "word"))
		}
		id := words[0]
		if err := CheckKEKID(id); err != nil {
			return nil, fmt.Errorf("line %d: %w; is the key before the id?", i+1, err)
		}
		if _, again := k.byID[id]; again {
			return nil, fmt.Errorf("line %d: duplicate id %s", i+1, id)
		}
		if err := k.parse(i+1, id, words[1:]); err != nil {
			return nil, fmt.Errorf("line %d: %w", i+1, err)
		}
		k.newest = id
	}
	if k.newest == "" {
		return nil, fmt.Errorf("there is no key in it; each line is an id and the output of: openssl rand -base64 %d, or the output of: producer new-kek", keySize)
	}
	return k, nil
}

// parse adds the key of a line. words are those after the id.
func (k *KEKs) parse(line int, id string, words []string) error {
	if len(words) == 1 {
		if strings.Contains(words[0], "://") {
			return fmt.Errorf("the wrapped key of %s is missing; make the line with: producer new-kek --id %s --kms URI", id, id)
		}
		key, err := base64.StdEncoding.Strict().DecodeString(words[0])
		if err != nil || len(key) != keySize {
			return fmt.Errorf("the key of %s is not %d bytes in base64; make one with: openssl rand -base64 %d", id, keySize, keySize)
		}
		k.byID[id], err = newAEAD(key)
		return err
	}
	if !strings.Contains(words[0], "://") {
		return fmt.Errorf("%s: %s", id, kekWords)
	}
	if err := CheckURI(words[0]); err != nil {
		return fmt.Errorf("%s: %w", id, err)
	}
	wrapped, err := base64.StdEncoding.Strict().DecodeString(words[1])
	if err != nil || len(wrapped) == 0 || len(wrapped) > maxWrapped {
		return fmt.Errorf("the wrapped key of %s is not base64 of at most %d bytes; make the line with: producer new-kek --id %s --kms URI", id, maxWrapped, id)
	}
	k.byID[id] = nil
	k.locked = append(k.locked, Locked{line, id, words[0], wrapped})
	return nil
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// NewLine returns a line for ParseKEKs with a new random key, which a key of a KMS has
// wrapped. It fails if the KMS does not unwrap the key, or unwraps it under another id.
func NewLine(ctx context.Context, kms KMS, uri, id string) (string, error) {
	var key [keySize]byte
	randomBytes(key[:])
	wrapped, err := kms.Wrap(ctx, key[:], id)
	if err != nil {
		return "", fmt.Errorf("wrapping a key: %w", err)
	}
	again, err := kms.Unwrap(ctx, wrapped, id)
	if err != nil {
		return "", fmt.Errorf("unwrapping the key again: %w", err)
	}
	if !bytes.Equal(again, key[:]) || len(wrapped) > maxWrapped {
		return "", fmt.Errorf("the KMS does not return the key that it has wrapped: %w", ErrRefused)
	}
	switch _, err := kms.Unwrap(ctx, wrapped, id+"-other"); {
	case err == nil:
		return "", fmt.Errorf("the KMS unwraps the key under another id, too: its key does not bind associated data: %w", ErrRefused)
	case !errors.Is(err, ErrRefused):
		return "", fmt.Errorf("unwrapping the key under another id, which the KMS must refuse: %w", err)
	}
	return id + " " + uri + " " + base64.StdEncoding.EncodeToString(wrapped) + "\n", nil
}

// Locked returns the keys that are locked, in the order of their lines.
func (k *KEKs) Locked() []Locked { return slices.Clone(k.locked) }

// Unlock sets a key that was locked.
func (k *KEKs) Unlock(id string, key []byte) error {
	i := slices.IndexFunc(k.locked, func(l Locked) bool { return l.ID == id })
	if i < 0 {
		return fmt.Errorf("%s is not locked", id)
	}
	if len(key) != keySize {
		return fmt.Errorf("the KMS has unwrapped %d bytes, not %d", len(key), keySize)
	}
	aead, err := newAEAD(key)
	if err != nil {
		return err
	}
	k.byID[id], k.locked = aead, slices.Delete(k.locked, i, i+1)
	return nil
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
