// Package kmstest imitates key management services for tests, on loopback: AWS KMS and the
// transit engine of Vault over HTTP, Google Cloud KMS over gRPC.
//
// Start at [Service]. The handlers of the three protocols share its keys and faults. Its lock
// guards them, because requests come from other goroutines than the test's.
package kmstest

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"errors"
	"sync"
	"testing"
)

// Service is a key management service. It has every key that it is asked for, except those
// that Remove has removed.
type Service struct {
	mu      sync.Mutex // guards the fields below
	fault   Fault
	left    int // number of calls that the fault has left; negative: all
	calls   int
	removed map[string]bool
	secrets []string // credentials of the requests
}

// Fault is what a service does instead of answering.
type Fault int

// The faults.
const (
	None   Fault = iota
	Denied       // the caller lacks the permission
	Down         // the service is not available
	Silent       // the connection is closed without an answer
)

// Fail lets the next calls fail; all if there are negative calls.
func (s *Service) Fail(fault Fault, calls int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault, s.left = fault, calls
}

// Remove removes a key.
func (s *Service) Remove(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.removed == nil {
		s.removed = map[string]bool{}
	}
	s.removed[key] = true
}

// Calls returns the number of calls so far.
func (s *Service) Calls() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls
}

// Secrets returns the credentials of the requests so far.
func (s *Service) Secrets() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.secrets...)
}

// call counts a call and returns its fault.
func (s *Service) call(secret string) Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls++
	s.secrets = append(s.secrets, secret)
	if s.left == 0 {
		return None
	}
	s.left--
	return s.fault
}

var (
	errNotFound = errors.New("there is no such key")
	errOpen     = errors.New("the ciphertext, the key or the associated data is another one")
)

func (s *Service) aead(key string) (cipher.AEAD, error) {
	s.mu.Lock()
	removed := s.removed[key]
	s.mu.Unlock()
	if removed {
		return nil, errNotFound
	}
	sum := sha256.Sum256([]byte(key))
	block, err := aes.NewCipher(sum[:])
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

func (s *Service) encrypt(key string, plain, data []byte) ([]byte, error) {
	a, err := s.aead(key)
	if err != nil {
		return nil, err
	}
	return a.Seal(nil, nil, plain, data), nil
}

func (s *Service) decrypt(key string, text, data []byte) ([]byte, error) {
	a, err := s.aead(key)
	if err != nil {
		return nil, err
	}
	plain, err := a.Open(nil, nil, text, data)
	if err != nil {
		return nil, errOpen
	}
	return bytes.Clone(plain), nil
}

// Env sets variables of the environment and removes those of other services.
func Env(t testing.TB, pairs ...string) {
	t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		t.Setenv(pairs[i], pairs[i+1])
	}
}
