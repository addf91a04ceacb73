package keyring

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"millrace/pipeline/seal"
)

// A KMS that does not answer is asked again with this backoff, for at most this time. Then
// the program ends, so that its supervisor sees the reason.
const (
	minUnlockWait = 200 * time.Millisecond
	maxUnlockWait = 5 * time.Second
	unlockTime    = 2 * time.Minute
)

// Unlock unlocks the key-encryption keys that a KMS has wrapped, one after the other. It
// retries while a KMS cannot be reached, up to two minutes in all, and calls waiting with the
// reason. A KMS that refuses is an error immediately.
func (f *Flags) Unlock(ctx context.Context, k *seal.KEKs, log *slog.Logger, waiting func(why string)) error {
	within := f.within
	if within == 0 {
		within = unlockTime
	}
	bounded, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for _, l := range k.Locked() {
		where := fmt.Sprintf("%s: line %d: the key-encryption key %s cannot be unwrapped by %s", f.source(), l.Line, l.ID, l.URI)
		var key []byte
		err := retry(bounded, func() (err error) {
			key, err = f.unwrap(bounded, l)
			return err
		}, func(err error, wait time.Duration) {
			waiting(fmt.Sprintf("%s: %v", where, err))
			log.Warn("a key-encryption key cannot be unwrapped; retrying", "kek", l.ID, "kms", l.URI, "err", err, "wait", wait)
		})
		switch {
		case err == nil:
			err = k.Unlock(l.ID, key)
		case ctx.Err() != nil:
			return ctx.Err()
		case bounded.Err() != nil:
			err = fmt.Errorf("gave up after %v: %w; check the network and the service, and start the program again", within, err)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", where, err)
		}
	}
	return nil
}

func (f *Flags) unwrap(ctx context.Context, l seal.Locked) ([]byte, error) {
	kms, err := f.env.KMS(ctx, l.URI)
	if err != nil {
		return nil, err
	}
	return kms.Unwrap(ctx, l.Wrapped, l.ID)
}

// retry calls do until it succeeds, a KMS refuses, or the context ends. It returns the last
// error of do.
func retry(ctx context.Context, do func() error, failed func(err error, wait time.Duration)) error {
	var last error
	for wait := minUnlockWait; ; wait = min(2*wait, maxUnlockWait) {
		err := do()
		if err == nil || errors.Is(err, seal.ErrRefused) {
			return err
		}
		if last == nil || ctx.Err() == nil {
			last = err // not that of a call which the end of the context stopped
		}
		if ctx.Err() != nil {
			return last
		}
		failed(err, wait)
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return last
		}
	}
}

// NewLine returns a line of the file of key-encryption keys, with a new key that a KMS has
// wrapped.
func NewLine(ctx context.Context, open func(context.Context, string) (seal.KMS, error), log *slog.Logger, uri, id string) (line string, err error) {
	if open == nil {
		return "", errNoKMS
	}
	bounded, cancel := context.WithTimeout(ctx, unlockTime)
	defer cancel()
	err = retry(bounded, func() error {
		kms, err := open(bounded, uri)
		if err == nil {
			line, err = seal.NewLine(bounded, kms, uri, id)
		}
		return err
	}, func(err error, wait time.Duration) {
		log.Warn("the key management service does not answer; retrying", "kms", uri, "err", err, "wait", wait)
	})
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	return line, err
}
