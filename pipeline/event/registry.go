package event

import (
	"context"
	"errors"
	"fmt"

	"millrace/pipeline/codec"
)

// compatibility is the level that is set for new subjects: a new version of a
// schema must be able to read every older one, because a replay reads them.
const compatibility = "BACKWARD_TRANSITIVE"

// Registry is the part of [codec.Registry] that a writer of events needs.
type Registry interface {
	Register(ctx context.Context, subject string, s *codec.Schema) (int, error)
	Lookup(ctx context.Context, subject string, s *codec.Schema) (int, error)
	SetCompatibility(ctx context.Context, subject, level string) error
}

// EnsureSchema returns the id of a schema under the subject of a topic. If the registry
// does not have the schema there, it is registered if register is set, else that
// is an error.
func EnsureSchema(ctx context.Context, registry Registry, topic string, s *codec.Schema, register bool) (int, error) {
	return ensure(ctx, registry, codec.TopicSubject(topic, s), s, register)
}

// ensure returns the id of a schema under a subject; see EnsureSchema.
func ensure(ctx context.Context, registry Registry, subject string, s *codec.Schema, register bool) (int, error) {
	id, err := registry.Lookup(ctx, subject, s)
	if !errors.Is(err, codec.ErrNotRegistered) {
		return id, err
	}
	if !register {
		return 0, fmt.Errorf("%w; register it, or run without --no-register", err)
	}
	if err := registry.SetCompatibility(ctx, subject, compatibility); err != nil {
		return 0, fmt.Errorf("setting the compatibility of subject %s to %s: %w", subject, compatibility, err)
	}
	return registry.Register(ctx, subject, s)
}
