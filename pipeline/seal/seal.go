// Package seal encrypts single fields, each with a key of its data subject. Destroying
// the key makes the subject's data unreadable in every copy (crypto-shredding). The
// package is independent of Kafka and Avro.
//
// There are two layers of keys (envelope encryption). A [DataKey] encrypts the fields of
// one subject with AES-256-GCM. It is stored in a record of a compacted topic, the key
// topic, wrapped by a key-encryption key. [KEKs] are the few key-encryption keys of the
// operator, from a file. A [Ring] holds the keys in the records of the key topic.
//
// Start at [Ring] (ring.go), and [DataKey.AppendText] and [ParseText] (seal.go). [Ring],
// [KEKs] and [DataKey] are safe for concurrent use.
//
// A ciphertext is self-describing:
//
//	sealed:                  in a text, the rest is in base64url without padding
//	version                  1 byte, 1
//	key id                   8 bytes
//	nonce                    12 bytes, random
//	ciphertext and tag       the length of the plaintext, and 16 bytes
//
// Its associated data are its subject and the name of its field, so it cannot be
// decrypted as another field or for another subject.
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
	sealedOver = headSize + 12 + 16 // bytes added to the plaintext, without the prefix
)

// Errors of ciphertexts that cannot be decrypted.
var (
	// ErrErased means that the subject was forgotten, and its keys are destroyed.
	ErrErased = errors.New("the subject was forgotten, and its key is destroyed")
	// ErrNoKey means that the subject does not have the key.
	ErrNoKey = errors.New("there is no such key")
	// ErrNoKEK means that the key cannot be unwrapped, because its key-encryption key is
	// missing or another one.
	ErrNoKEK = errors.New("the key-encryption key is missing")
	// ErrTampered means that the value is not a ciphertext of this key for this place.
	ErrTampered = errors.New("the ciphertext was changed, or belongs to another subject or field")
)

// base64url is strict, so a ciphertext has only one text.
var base64url = base64.RawURLEncoding.Strict()

// A Place is the subject and the field that a ciphertext is bound to.
type Place struct{ Subject, Field string }

// associated returns the associated data of the place.
func (p Place) associated() []byte {
	b := append(make([]byte, 0, 24+len(p.Subject)+len(p.Field)), "millrace field 1\x00"...)
	b = binary.AppendUvarint(b, uint64(len(p.Subject)))
	b = append(b, p.Subject...)
	return append(b, p.Field...)
}

// A KeyID identifies a key of a subject.
type KeyID [8]byte

// String returns the id in hexadecimal.
func (id KeyID) String() string { return hex.EncodeToString(id[:]) }

// A DataKey encrypts the fields of a subject. It is safe for concurrent use.
type DataKey struct {
	ID   KeyID
	aead cipher.AEAD
}

// newAEAD returns AES-256-GCM that generates a random nonce per message and prepends it to
// the ciphertext. A key must not encrypt more than 2^32 messages.
func newAEAD(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// randomBytes fills b. crypto/rand ends the program if it cannot.
func randomBytes(b []byte) { _, _ = rand.Read(b) }

// AppendBytes appends the ciphertext of a value as bytes.
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

// A Sealed is a parsed ciphertext. It may share memory with the value it was parsed from.
type Sealed struct {
	KeyID KeyID
	box   []byte // nonce, ciphertext and tag
}

// ParseBytes parses a value of [DataKey.AppendBytes]. It returns ok as false if the value
// is not a ciphertext but plaintext, from before the field was encrypted. An error is
// [ErrTampered].
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

// ParseText parses a value of [DataKey.AppendText], with the results of [ParseBytes].
func ParseText(value []byte) (s Sealed, ok bool, err error) {
	text, ok := bytes.CutPrefix(value, []byte(prefix))
	if !ok {
		return s, false, nil
	}
	raw, err := base64url.AppendDecode([]byte(prefix), text)
	if err != nil || bytes.ContainsAny(text, "\r\n") { // the decoder ignores line breaks
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
