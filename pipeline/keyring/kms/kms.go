// Package kms has the clients of key management services: AWS KMS, Google Cloud KMS, and the
// transit engine of HashiCorp Vault. Their code is large, so only programs import it.
//
// Start at [Open]. One file per service says what its errors mean: a service that refuses
// ([seal.ErrRefused]) is not asked again. The package has no state.
package kms

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/tink-crypto/tink-go/v2/tink"

	"millrace/pipeline/seal"
)

// attempt is the time for one call of a service, with the search for credentials.
const attempt = 10 * time.Second

// Open returns the key of a KMS with the URI. It reads the environment, and files of
// credentials that the environment names. It connects only to find credentials.
func Open(ctx context.Context, uri string) (seal.KMS, error) {
	if err := seal.CheckURI(uri); err != nil {
		return nil, refuse(err)
	}
	scheme, _, _ := strings.Cut(uri, "://")
	switch scheme {
	case "aws-kms":
		return openAWS(ctx, uri)
	case "gcp-kms":
		return openGCP(uri), nil
	default:
		return openVault(uri)
	}
}

// refuse marks an error as one that a retry cannot fix.
func refuse(err error) error { return fmt.Errorf("%w: %w", seal.ErrRefused, err) }

// remote is a key of a service. call calls a function with a client of the key, and
// explains its error.
type remote struct {
	call func(ctx context.Context, f func(tink.AEADWithContext) ([]byte, error)) ([]byte, error)
}

// Wrap implements [seal.KMS].
func (r *remote) Wrap(ctx context.Context, key []byte, id string) ([]byte, error) {
	ctx, cancel := bound(ctx)
	defer cancel()
	return r.call(ctx, func(a tink.AEADWithContext) ([]byte, error) { return a.EncryptWithContext(ctx, key, []byte(id)) })
}

// Unwrap implements [seal.KMS].
func (r *remote) Unwrap(ctx context.Context, wrapped []byte, id string) ([]byte, error) {
	ctx, cancel := bound(ctx)
	defer cancel()
	return r.call(ctx, func(a tink.AEADWithContext) ([]byte, error) { return a.DecryptWithContext(ctx, wrapped, []byte(id)) })
}

func bound(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, attempt, fmt.Errorf("no answer in %v", attempt))
}

// secretVariables are variables of the environment whose values no error may have.
var secretVariables = []string{"VAULT_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_CONTAINER_AUTHORIZATION_TOKEN"}

// clean returns a text of a service on one line, at most 500 bytes, without secrets.
func clean(text string) string {
	for _, name := range secretVariables {
		if secret := os.Getenv(name); secret != "" {
			text = strings.ReplaceAll(text, secret, "("+name+")")
		}
	}
	text = strings.Join(strings.Fields(text), " ")
	if len(text) > 500 {
		text = strings.ToValidUTF8(text[:500], "") + "..."
	}
	return text
}
