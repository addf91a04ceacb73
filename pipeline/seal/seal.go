// Package seal encrypts single fields, each under a key of the subject that it is
// about, so that who destroys that key has destroyed the subject's data in every
// copy of it. It knows neither Kafka nor Avro.
//
// There are two layers of keys, as is usual. A [DataKey] encrypts the fields of
// one subject with AES-256-GCM. It is kept, wrapped by a key-encryption key, in a
// record of a compacted topic; [KEKs] are the few of those that an operator has,
// in a file. A [Ring] knows what the topic's records say, in the order of the log.
//
// A ciphertext says by itself how it is to be read:
//
//	sealed:                  and then, in a text, base64url without padding of
//	version                  1 byte, 1
//	key id                   8 bytes
//	nonce                    12 bytes, random
//	ciphertext and tag       as long as the plaintext, and 16 bytes
//
// Its associated data are its subject and the name of its field, so that it can be
// read nowhere else.
package seal

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
)

const (
	prefix     = "sealed:"
	version    = 1
	keySize    = 32 // AES-256
	headSize   = 1 + len(KeyID{})
	sealedOver = headSize + 12 + 16 // more than the plaintext has, in bytes
)

// Errors of what cannot be read.
var (
	// ErrErased: the subject was forgotten, and its keys are destroyed.
	ErrErased = errors.New("the subject was forgotten, and its key is destroyed")
	// ErrNoKey: the subject has no such key.
	ErrNoKey = errors.New("there is no such key")
	// ErrNoKEK: the key is wrapped by a key-encryption key that is not at hand.
	ErrNoKEK = errors.New("the key-encryption key is not at hand")
	// ErrTampered: what is there is no ciphertext of this key for this place.
	ErrTampered = errors.New("it was changed, or is of another subject or field")
)

// base64url is strict: one ciphertext has one text.
var base64url = base64.RawURLEncoding.Strict()

// A Place is what a ciphertext is bound to.
type Place struct{ Subject, Field string }

// associated returns the place as associated data.
func (p Place) associated() []byte {
	b := append(make([]byte, 0, 24+len(p.Subject)+len(p.Field)), "millrace field 1\x00"...)
	b = binary.AppendUvarint(b, uint64(len(p.Subject)))
	b = append(b, p.Subject...)
	return append(b, p.Field...)
}

// A KeyID tells the keys of a subject apart.
type KeyID [8]byte

func (id KeyID) String() string { return hex.EncodeToString(id[:]) }

// A DataKey encrypts the fields of a subject. It is safe for concurrent use.
type DataKey struct {
	ID   KeyID
	aead cipher.AEAD
}

// newAEAD returns AES-256-GCM that makes a nonce for each message and puts it
// before the ciphertext. A key is good for 2^32 of them.
func newAEAD(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// randomBytes fills b; the standard library ends the program if it cannot.
func randomBytes(b []byte) { _, _ = rand.Read(b) }

// AppendBytes appends the ciphertext of a value.
func (k *DataKey) AppendBytes(dst, plain []byte, at Place) []byte {
	return k.seal(append(dst, prefix...), plain, at)
}

// AppendText appends the ciphertext of a value as ASCII text.
func (k *DataKey) AppendText(dst, plain []byte, at Place) []byte {
	raw := k.seal(make([]byte, 0, len(plain)+sealedOver), plain, at)
	return base64url.AppendEncode(append(dst, prefix...), raw)
}

func (k *DataKey) seal(dst, plain []byte, at Place) []byte {
	dst = append(append(dst, version), k.ID[:]...)
	return k.aead.Seal(dst, nil, plain, at.associated())
}

// A Sealed is a ciphertext that was taken apart.
type Sealed struct {
	KeyID KeyID
	box   []byte // nonce, ciphertext and tag
}

// ParseBytes takes a value apart that [DataKey.AppendBytes] made. It is not ok if
// the value is no ciphertext: plaintext, from before the field was encrypted. An
// error is [ErrTampered].
func ParseBytes(value []byte) (s Sealed, ok bool, err error) {
	raw, ok := bytes.CutPrefix(value, []byte(prefix))
	if !ok {
		return s, false, nil
	}
	if len(raw) < sealedOver || raw[0] != version {
		return s, true, ErrTampered
	}
	s.box = raw[headSize:]
	copy(s.KeyID[:], raw[1:headSize])
	return s, true, nil
}

// ParseText is [ParseBytes] for [DataKey.AppendText].
func ParseText(value []byte) (s Sealed, ok bool, err error) {
	text, ok := bytes.CutPrefix(value, []byte(prefix))
	if !ok {
		return s, false, nil
	}
	raw, err := base64url.AppendDecode([]byte(prefix), text)
	if err != nil || bytes.ContainsAny(text, "\r\n") { // which decoding skips
		return s, true, ErrTampered
	}
	return ParseBytes(raw)
}

// Open returns the plaintext. An error is [ErrTampered].
func (k *DataKey) Open(s Sealed, at Place) ([]byte, error) {
	if s.KeyID != k.ID {
		return nil, ErrTampered
	}
	plain, err := k.aead.Open(nil, nil, s.box, at.associated())
	if err != nil {
		return nil, ErrTampered
	}
	return plain, nil
}
