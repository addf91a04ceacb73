package auth

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/oauth"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"
)

// SASL holds the settings for client authentication. The zero value disables it.
type SASL struct {
	// Mechanism is "", PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER.
	Mechanism string

	// Username and Password are for PLAIN and SCRAM.
	Username string
	Password Secret

	// OAuth is for OAUTHBEARER.
	OAuth OAuth

	// AllowCleartext lets PLAIN and OAUTHBEARER send their secret without TLS
	// to other machines, and fetch tokens over plain HTTP.
	AllowCleartext bool
}

// OAuth holds the settings for tokens of OAUTHBEARER. They come from the token
// endpoint of an OpenID provider, by the client-credentials grant. A token is used for
// four fifths of its lifetime; the next connection after that fetches a new one.
type OAuth struct {
	TokenURL     string
	ClientID     string
	ClientSecret Secret
	Scope        string            // in the format of the provider; no scope if empty
	Extensions   map[string]string // sent to the broker with the token
	CAFile       string            // PEM file of authorities trusted for TokenURL; they replace the system's
}

// The values of [SASL.Mechanism].
const (
	MechanismPlain    = "PLAIN"
	MechanismScram256 = "SCRAM-SHA-256"
	MechanismScram512 = "SCRAM-SHA-512"
	MechanismOAuth    = "OAUTHBEARER"
	MechanismsInWords = "PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER"
)

// The names of the Java client's settings of [OAuth], which error texts name.
const (
	OAuthKeyURL    = "sasl.oauthbearer.token.endpoint.url"
	OAuthKeyID     = "sasl.oauthbearer.client.credentials.client.id"
	OAuthKeySecret = "sasl.oauthbearer.client.credentials.client.secret"
)

const maxTokenReplyBytes = 1 << 20

// Exposes reports whether a connection without TLS to host would send the secret itself to
// another machine, although that is not allowed.
func (s SASL) Exposes(host string) bool {
	sends := s.Mechanism == MechanismPlain || s.Mechanism == MechanismOAuth
	return sends && !s.AllowCleartext && !isLoopback(host)
}

func isLoopback(host string) bool {
	if ip := net.ParseIP(host); ip != nil {
		return ip.IsLoopback()
	}
	return host == "localhost"
}

// Validate returns all faults of the settings together. It does not connect.
func (s SASL) Validate() error {
	var faults []error
	missing := func(key string, empty bool) {
		if empty {
			faults = append(faults, fmt.Errorf("sasl.mechanism=%s needs %s", s.Mechanism, key))
		}
	}
	switch s.Mechanism {
	case "":
	case MechanismPlain, MechanismScram256, MechanismScram512:
		missing("sasl.username", s.Username == "")
		missing("sasl.password (MILLRACE_SASL_PASSWORD, MILLRACE_SASL_PASSWORD_FILE or a property file)", s.Password.IsZero())
	case MechanismOAuth:
		missing(OAuthKeyURL, s.OAuth.TokenURL == "")
		missing(OAuthKeyID, s.OAuth.ClientID == "")
		missing(OAuthKeySecret, s.OAuth.ClientSecret.IsZero())
		if s.OAuth.TokenURL != "" {
			if err := s.checkTokenURL(); err != nil {
				faults = append(faults, fmt.Errorf("%s: %w", OAuthKeyURL, err))
			}
		}
		if err := CheckExtensions(s.OAuth.Extensions); err != nil {
			faults = append(faults, fmt.Errorf("sasl.oauthbearer.extensions: %w", err))
		}
	default:
		faults = append(faults, fmt.Errorf("sasl.mechanism: %q is not supported; want %s", s.Mechanism, MechanismsInWords))
	}
	return errors.Join(faults...)
}

func (s SASL) checkTokenURL() error {
	u, err := url.Parse(s.OAuth.TokenURL)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http":
		return errors.New("not a URL; want https://host/path") // the value may hold a secret, so the error does not repeat it
	case u.User != nil:
		return errors.New("a URL must hold no user or password")
	case u.Scheme == "http" && !isLoopback(u.Hostname()) && !s.AllowCleartext:
		return errors.New("plain HTTP would send the client secret unencrypted; use https (or set sasl.allow.cleartext=true if the network is trusted)")
	}
	return nil
}

// CheckExtensions applies the rules of RFC 7628: 0x01 ends a pair, so values must not
// contain it, and the name auth is reserved.
func CheckExtensions(ext map[string]string) error {
	for k, v := range ext {
		letters := func(r rune) bool { return r < 'A' || r > 'Z' && r < 'a' || r > 'z' }
		if k == "" || k == "auth" || strings.ContainsFunc(k, letters) {
			return fmt.Errorf("%q is not a valid extension name: use only letters, and not auth", k)
		}
		if strings.ContainsFunc(v, func(r rune) bool { return r < ' ' && !strings.ContainsRune("\t\r\n", r) || r > '~' }) {
			return fmt.Errorf("the value of %q has characters that are not allowed", k)
		}
	}
	return nil
}

// Client returns the mechanism for one client, nil without authentication. The connections
// of the client share its token.
func (s SASL) Client() sasl.Mechanism {
	scramAuth := scram.Auth{User: s.Username, Pass: s.Password.Reveal()}
	switch s.Mechanism {
	case MechanismPlain:
		return plain.Auth{User: s.Username, Pass: s.Password.Reveal()}.AsMechanism()
	case MechanismScram256:
		return scramAuth.AsSha256Mechanism()
	case MechanismScram512:
		return scramAuth.AsSha512Mechanism()
	case MechanismOAuth:
		return oauth.Oauth((&tokenSource{cfg: s.OAuth, now: time.Now}).auth)
	}
	return nil
}

// A tokenSource fetches a token when a connection needs one, and caches it for most of
// its lifetime. All connections of a client share it.
type tokenSource struct {
	cfg OAuth
	now func() time.Time

	mu    sync.Mutex // guards the fields below; held during a fetch, so concurrent connections share it
	token string
	until time.Time // when to fetch the next
}

func (t *tokenSource) auth(ctx context.Context) (oauth.Auth, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.token == "" || !t.now().Before(t.until) {
		token, life, err := t.fetch(ctx)
		if err != nil {
			return oauth.Auth{}, fmt.Errorf("token for OAUTHBEARER from %s: %w", t.cfg.TokenURL, err)
		}
		t.token, t.until = token, t.now().Add(life*4/5)
	}
	return oauth.Auth{Token: t.token, Extensions: t.cfg.Extensions}, nil
}

func (t *tokenSource) fetch(ctx context.Context) (token string, life time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()

	form := url.Values{"grant_type": {"client_credentials"}}
	if t.cfg.Scope != "" {
		form.Set("scope", t.cfg.Scope)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, t.cfg.TokenURL, strings.NewReader(form.Encode()))
	if err != nil {
		return "", 0, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Accept", "application/json")
	// RFC 6749, 2.3.1: id and secret are form-encoded before Basic authentication.
	req.SetBasicAuth(url.QueryEscape(t.cfg.ClientID), url.QueryEscape(t.cfg.ClientSecret.Reveal()))

	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true}
	if t.cfg.CAFile != "" {
		ca, err := os.ReadFile(t.cfg.CAFile)
		if err != nil {
			return "", 0, fmt.Errorf("https.ca.location: %w", err)
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(ca) {
			return "", 0, fmt.Errorf("https.ca.location: %s holds no certificate in PEM form", t.cfg.CAFile)
		}
		transport.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}
	}
	client := &http.Client{
		Transport: transport,
		// Do not send the secret to a server that is not configured.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	resp, err := client.Do(req)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err // the caller adds the URL
		}
		return "", 0, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxTokenReplyBytes))
	if err != nil {
		return "", 0, err
	}

	var reply struct {
		AccessToken string      `json:"access_token"`
		ExpiresIn   json.Number `json:"expires_in"` // some providers send a string
		Error       string      `json:"error"`
		Description string      `json:"error_description"`
	}
	bad := json.Unmarshal(body, &reply)
	switch {
	case resp.StatusCode != http.StatusOK:
		// Only the two fields that are meant for display: the rest of the reply may
		// repeat the request with its secret.
		why := strings.Join(slices.DeleteFunc([]string{resp.Status, reply.Error, reply.Description}, func(s string) bool { return s == "" }), ": ")
		return "", 0, fmt.Errorf("%s; check %s and its secret, and sasl.oauthbearer.scope", why, OAuthKeyID)
	case bad != nil:
		return "", 0, errors.New("the reply is not the JSON of a token endpoint; check " + OAuthKeyURL)
	case reply.AccessToken == "":
		return "", 0, errors.New("the reply holds no access_token; check " + OAuthKeyURL)
	}
	seconds, err := reply.ExpiresIn.Int64()
	if err != nil || seconds <= 0 {
		seconds = 60 // expires_in is optional: assume a short lifetime
	}
	return reply.AccessToken, time.Duration(min(seconds, 365*24*3600)) * time.Second, nil
}
