package kms

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/hashicorp/vault/api"
	"github.com/tink-crypto/tink-go-hcvault/v2/integration/hcvault"
	"github.com/tink-crypto/tink-go/v2/tink"

	"millrace/pipeline/seal"
)

// openVault returns a key of the transit engine of Vault. Vault's variables of the environment
// configure the client: VAULT_TOKEN, VAULT_NAMESPACE, VAULT_CACERT and so on. The URI has the
// address. Its scheme is https, unless VAULT_ADDR has the same host and port with http.
func openVault(uri string) (seal.KMS, error) {
	at, err := url.Parse(uri)
	if err != nil {
		return nil, refuse(errors.New("want hcvault://HOST:PORT/transit/keys/NAME"))
	}
	key := &vaultKey{host: at.Host, path: at.EscapedPath()}
	if _, err := key.with(context.Background()); err != nil {
		return nil, refuse(err)
	}
	return &remote{func(ctx context.Context, f func(tink.AEADWithContext) ([]byte, error)) ([]byte, error) {
		out, err := f(key)
		return out, explainVault(ctx, err)
	}}, nil
}

// vaultKey is a key of Vault. Tink's takes no context, so each call has a client of its own,
// whose requests have the context of the call.
type vaultKey struct{ host, path string }

var _ tink.AEADWithContext = (*vaultKey)(nil)

func (k *vaultKey) with(ctx context.Context) (tink.AEAD, error) {
	cfg := api.DefaultConfig()
	if cfg == nil || cfg.Error != nil {
		return nil, errors.New("a variable VAULT_... of the environment is not valid")
	}
	scheme := "https"
	if own, err := url.Parse(cfg.Address); err == nil && own.Host == k.host && own.Scheme == "http" {
		scheme = "http"
	}
	cfg.Address, cfg.AgentAddress, cfg.MaxRetries = scheme+"://"+k.host, "", 0
	if t, ok := cfg.HttpClient.Transport.(*http.Transport); ok {
		t.DisableKeepAlives = true // a client makes one call
	}
	cfg.HttpClient.Transport = withContext{ctx, cfg.HttpClient.Transport}
	client, err := api.NewClient(cfg)
	if err != nil {
		return nil, fmt.Errorf("the configuration of Vault: %s", clean(err.Error()))
	}
	if client.Token() == "" {
		return nil, errors.New("there is no token for Vault: set VAULT_TOKEN")
	}
	aead, err := hcvault.NewAEAD(k.path, client.Logical())
	if err != nil {
		return nil, fmt.Errorf("want hcvault://HOST:PORT/transit/keys/NAME: %w", err)
	}
	return aead, nil
}

// EncryptWithContext implements [tink.AEADWithContext].
func (k *vaultKey) EncryptWithContext(ctx context.Context, plaintext, associatedData []byte) ([]byte, error) {
	aead, err := k.with(ctx)
	if err != nil {
		return nil, err
	}
	return aead.Encrypt(plaintext, associatedData)
}

// DecryptWithContext implements [tink.AEADWithContext].
func (k *vaultKey) DecryptWithContext(ctx context.Context, ciphertext, associatedData []byte) ([]byte, error) {
	aead, err := k.with(ctx)
	if err != nil {
		return nil, err
	}
	return aead.Decrypt(ciphertext, associatedData)
}

// withContext gives all requests a context.
type withContext struct {
	ctx  context.Context
	next http.RoundTripper
}

// RoundTrip implements [http.RoundTripper].
func (w withContext) RoundTrip(r *http.Request) (*http.Response, error) {
	return w.next.RoundTrip(r.WithContext(w.ctx))
}

// explainVault explains an error of Vault.
func explainVault(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	var answer *api.ResponseError
	if !errors.As(err, &answer) {
		if cause := context.Cause(ctx); cause != nil {
			return fmt.Errorf("Vault: %w", cause)
		}
		return fmt.Errorf("Vault: %s", clean(err.Error()))
	}
	text := fmt.Sprintf("Vault answers %d %s: %s", answer.StatusCode, http.StatusText(answer.StatusCode), clean(strings.Join(answer.Errors, "; ")))
	switch code := answer.StatusCode; {
	case code == http.StatusForbidden:
		text += "; the token (VAULT_TOKEN) is not valid, or its policy lacks update on transit/encrypt/NAME (producer new-kek) and transit/decrypt/NAME"
	case code == http.StatusBadRequest:
		text += "; the line was changed, has the id or the URI of another line, or another key has wrapped it. The type of the key must be aes256-gcm96, aes128-gcm96 or chacha20-poly1305, not derived"
	case code == http.StatusNotFound:
		text += "; check the URI of the line, VAULT_NAMESPACE, and whether the transit engine is enabled there"
	default:
		return errors.New(text)
	}
	return refuse(errors.New(text))
}
