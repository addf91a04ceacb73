package cli

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/spf13/pflag"

	"millrace/pipeline/codec"
	"millrace/pipeline/kafka/auth"
)

// DefaultRegistry is the default URL of the schema registry.
const DefaultRegistry = "http://127.0.0.1:8085"

// RegistryFlags are the flags that configure the client of the schema registry.
type RegistryFlags struct {
	env    *Env
	urls   []string
	caFile string
}

// RegistryFlags adds --registry and --registry-ca. User, password and token come only from
// the environment.
func (e *Env) RegistryFlags(flags *pflag.FlagSet) *RegistryFlags {
	f := &RegistryFlags{env: e}
	flags.StringSliceVarP(&f.urls, "registry", "r", []string{DefaultRegistry}, "schema registry `URL`, or several of one cluster; "+
		"credentials from env MILLRACE_REGISTRY_USER and _PASSWORD, or _TOKEN (or _PASSWORD_FILE, _TOKEN_FILE)")
	flags.StringVar(&f.caFile, "registry-ca", "", "PEM `file` of authorities to trust at the registry instead of the system's")
	e.BindEnv(flags, "registry", "registry-ca")
	return f
}

// Registry configures the client of the schema registry. It authenticates with user and
// password, with a token, or not at all.
type Registry struct {
	URLs     []string
	User     string
	Password auth.Secret
	Token    auth.Secret
	TLS      *tls.Config // nil means the system's defaults
}

// Config returns the configuration from flags and environment.
func (f *RegistryFlags) Config() (Registry, error) {
	r := Registry{User: f.env.Getenv("MILLRACE_REGISTRY_USER")}
	var faults []error
	for _, raw := range f.urls {
		u, err := url.Parse(raw)
		switch {
		case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
			faults = append(faults, errors.New("--registry: want a URL such as "+DefaultRegistry))
		case u.User != nil:
			faults = append(faults, errors.New("--registry: other users can see a URL with credentials; use MILLRACE_REGISTRY_USER and MILLRACE_REGISTRY_PASSWORD"))
		default:
			r.URLs = append(r.URLs, strings.TrimRight(raw, "/"))
		}
	}
	var err error
	if r.Password, err = f.env.secret("MILLRACE_REGISTRY_PASSWORD"); err != nil {
		faults = append(faults, err)
	}
	if r.Token, err = f.env.secret("MILLRACE_REGISTRY_TOKEN"); err != nil {
		faults = append(faults, err)
	}
	switch {
	case !r.Token.IsZero() && (r.User != "" || !r.Password.IsZero()):
		faults = append(faults, errors.New("MILLRACE_REGISTRY_TOKEN and MILLRACE_REGISTRY_USER or _PASSWORD are both set: set one"))
	case r.User == "" && !r.Password.IsZero():
		faults = append(faults, errors.New("MILLRACE_REGISTRY_PASSWORD needs MILLRACE_REGISTRY_USER"))
	}
	if f.caFile != "" {
		if r.TLS, err = (auth.TLS{Enabled: true, CAFile: f.caFile}).Config(); err != nil {
			faults = append(faults, fmt.Errorf("--registry-ca: %w", err))
		}
	}
	if len(faults) > 0 {
		return Registry{}, &ExitError{ExitUsage, errors.Join(faults...)}
	}
	return r, nil
}

// OpenRegistry returns a client of the schema registry. It does not connect.
func OpenRegistry(r Registry) (*codec.Registry, error) {
	return codec.NewRegistry(codec.RegistryConfig{
		URLs: r.URLs, User: r.User, Password: r.Password.Reveal(), Token: r.Token.Reveal(), TLS: r.TLS,
		UserAgent: "millrace/" + ReadBuild().Version,
	})
}
