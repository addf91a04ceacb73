package event

import (
	"context"
	"errors"
	"fmt"

	"millrace/pipeline/codec"
)

// compatibility is what a subject demands of new versions of its schema: they
// have to read every older one, because a replay does.
const compatibility = "BACKWARD_TRANSITIVE"

// Registry is what the programs need of codec.Registry to write.
type Registry interface {
	Register(ctx context.Context, subject string, s *codec.Schema) (int, error)
	Lookup(ctx context.Context, subject string, s *codec.Schema) (int, error)
	SetCompatibility(ctx context.Context, subject, level string) error
}

// SchemaID returns under which id the registry has a schema for a topic. If it
// has not, and register is set, the schema is put there.
func SchemaID(ctx context.Context, registry Registry, topic string, s *codec.Schema, register bool) (int, error) {
	subject := codec.Subject(topic, s)
	id, err := registry.Lookup(ctx, subject, s)
	if !errors.Is(err, codec.ErrNotRegistered) {
		return id, err
	}
	if !register {
		return 0, fmt.Errorf("%w; register it, or run without --no-register", err)
	}
	if err := registry.SetCompatibility(ctx, subject, compatibility); err != nil {
		return 0, fmt.Errorf("asking that new versions of %s read the old ones: %w", subject, err)
	}
	return registry.Register(ctx, subject, s)
}
