package keyring

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"millrace/pipeline/cli"
	"millrace/pipeline/harness"
	"millrace/pipeline/seal"
)

// scriptedKMS answers with the errors, one after the other, then with a key.
type scriptedKMS struct {
	errs  []error
	calls int
	done  func() // called with each call
}

func (s *scriptedKMS) Wrap(_ context.Context, _ []byte, id string) ([]byte, error) {
	return []byte(id), nil
}

func (s *scriptedKMS) Unwrap(context.Context, []byte, string) ([]byte, error) {
	if s.done != nil {
		s.done()
	}
	if s.calls++; s.calls <= len(s.errs) {
		return nil, s.errs[s.calls-1]
	}
	return make([]byte, 32), nil
}

var (
	errDown   = errors.New("Vault answers 503")
	errDenied = fmt.Errorf("%w: Vault answers 403", seal.ErrRefused)
)

func unlockFlags(t *testing.T, kms *scriptedKMS, text string) (*Flags, *seal.KEKs) {
	t.Helper()
	e := &cli.Env{
		LookupEnv: func(name string) (string, bool) { return text, name == EnvKEK },
		KMS:       func(context.Context, string) (seal.KMS, error) { return kms, nil },
	}
	f := &Flags{env: e}
	k, err := f.Parse()
	if err != nil {
		t.Fatal(err)
	}
	return f, k
}

const locked = "a hcvault://v:1/transit/keys/k AAAA\nb hcvault://v:1/transit/keys/k AAAB\n"

func TestAKMSThatDoesNotAnswerIsAskedAgain(t *testing.T) {
	kms := &scriptedKMS{errs: []error{errDown, errDown}}
	f, k := unlockFlags(t, kms, locked)
	var out harness.Buffer
	var why []string
	if err := f.Unlock(t.Context(), k, slog.New(slog.NewTextHandler(&out, nil)), func(s string) { why = append(why, s) }); err != nil {
		t.Fatal(err)
	}
	if len(k.Locked()) != 0 || !k.Has("a") || !k.Has("b") || kms.calls != 4 {
		t.Errorf("%d calls, locked: %v", kms.calls, k.Locked())
	}
	if want := "MILLRACE_KEK: line 1: the key-encryption key a cannot be unwrapped by hcvault://v:1/transit/keys/k: Vault answers 503"; len(why) != 2 || why[0] != want {
		t.Errorf("waiting for %q, want %q", why, want)
	}
	harness.WantLines(t, out.String(), "a key-encryption key cannot be unwrapped; retrying", "kek=a kms=hcvault://v:1/transit/keys/k", "wait=200ms", "wait=400ms")
}

func TestAKMSThatRefusesIsNotAskedAgain(t *testing.T) {
	kms := &scriptedKMS{errs: []error{errDown, errDenied}}
	f, k := unlockFlags(t, kms, locked)
	err := f.Unlock(t.Context(), k, slog.New(slog.DiscardHandler), func(string) {})
	if want := "MILLRACE_KEK: line 1: the key-encryption key a cannot be unwrapped by hcvault://v:1/transit/keys/k: refused: Vault answers 403"; err == nil || err.Error() != want || kms.calls != 2 {
		t.Errorf("%d calls: %v, want %s", kms.calls, err, want)
	}
}

func TestAKMSThatNeverAnswersEndsTheWaiting(t *testing.T) {
	kms := &scriptedKMS{errs: make([]error, 1000)}
	for i := range kms.errs {
		kms.errs[i] = errDown
	}
	f, k := unlockFlags(t, kms, locked)
	f.within = time.Millisecond
	err := f.Unlock(t.Context(), k, slog.New(slog.DiscardHandler), func(string) {})
	if err == nil || !strings.Contains(err.Error(), "gave up after 1ms: Vault answers 503; check the network and the service") {
		t.Error(err)
	}
}

func TestAStopEndsTheWaitingForAKMS(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	kms := &scriptedKMS{errs: []error{errDown, errDown}, done: stop}
	f, k := unlockFlags(t, kms, locked)
	if err := f.Unlock(ctx, k, slog.New(slog.DiscardHandler), func(string) {}); !errors.Is(err, context.Canceled) || kms.calls != 1 {
		t.Errorf("%d calls: %v", kms.calls, err)
	}
}

func TestAProgramWithoutClientsOfAKMSSaysSo(t *testing.T) {
	e := &cli.Env{LookupEnv: func(name string) (string, bool) { return locked, name == EnvKEK }}
	_, err := (&Flags{env: e}).Parse()
	if want := "MILLRACE_KEK: line 1: a: this program has no clients of key management services; programs.WithKMS adds them"; err == nil || err.Error() != want || cli.ExitCode(err) != cli.ExitUsage {
		t.Errorf("%v, want %s", err, want)
	}
	if _, err := NewLine(t.Context(), nil, slog.New(slog.DiscardHandler), "hcvault://v:1/transit/keys/k", "a"); !errors.Is(err, errNoKMS) {
		t.Error(err)
	}
}
