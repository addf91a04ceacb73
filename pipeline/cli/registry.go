package cli

import (
	"millrace/pipeline/codec"
)

// OpenRegistry returns a client of the schema registry.
func OpenRegistry(r Registry) (*codec.Registry, error) {
	return codec.NewRegistry(codec.RegistryConfig{
		URLs: r.URLs, User: r.User, Password: r.Password.Reveal(), Token: r.Token.Reveal(), TLS: r.TLS,
		UserAgent: "millrace/" + ReadBuild().Version,
	})
}
