package event

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"millrace/pipeline"
	"millrace/pipeline/codec"
)

// compatibility is the level that is set for new subjects: a new version of a
// schema must be able to read every older one, because a replay reads them.
const compatibility = "BACKWARD_TRANSITIVE"

// Registry is the part of [codec.Registry] that a writer of events needs.
type Registry interface {
	Register(ctx context.Context, subject string, s *codec.Schema) (int, error)
	Lookup(ctx context.Context, subject string, s *codec.Schema) (int, error)
	Versions(ctx context.Context, subject string) ([]codec.Version, error)
	Schema(ctx context.Context, ref codec.SchemaRef) (*codec.Schema, error)
	SetCompatibility(ctx context.Context, subject, level string) error
}

// EnsureSchema returns the id of a schema under a subject. If the registry does not have
// the schema there, it is registered if register is set.
//
// Otherwise, and if the registry refuses that, the id is that of the newest version whose
// records have the same bytes and names. The registry does not find such a version by our
// text if that version has other docs or defaults, or refers to schemas of other subjects.
// Without such a version, the error names the subject.
func EnsureSchema(ctx context.Context, registry Registry, subject string, s *codec.Schema, register bool) (int, error) {
	id, err := registry.Lookup(ctx, subject, s)
	if register && errors.Is(err, codec.ErrNotRegistered) {
		id, err = add(ctx, registry, subject, s)
	}
	if err == nil || !errors.Is(err, codec.ErrNotRegistered) && !errors.Is(err, codec.ErrRefused) {
		return id, err
	}
	if id, err := sameBytes(ctx, registry, subject, s); err != nil || id != 0 {
		return id, err
	}
	if !register && errors.Is(err, codec.ErrNotRegistered) {
		return 0, fmt.Errorf("%w; register it, or run without --no-register", err)
	}
	return 0, fmt.Errorf("%w; subject %s has no version with the fields of %s: let a user with that right register it, then start again", err, subject, s.Name())
}

// add registers a schema. It sets the compatibility of a new subject; that of an existing
// one belongs to its owner.
func add(ctx context.Context, registry Registry, subject string, s *codec.Schema) (int, error) {
	versions, err := registry.Versions(ctx, subject)
	if err != nil {
		return 0, err
	}
	if len(versions) == 0 {
		if err := registry.SetCompatibility(ctx, subject, compatibility); err != nil {
			return 0, fmt.Errorf("setting the compatibility of subject %s to %s: %w", subject, compatibility, err)
		}
	}
	return registry.Register(ctx, subject, s)
}

// sameBytes returns the id of the newest version of a subject whose records have the same
// bytes and names as those of the schema; 0 if there is none.
func sameBytes(ctx context.Context, registry Registry, subject string, s *codec.Schema) (int, error) {
	versions, err := registry.Versions(ctx, subject)
	if err != nil {
		return 0, err
	}
	for _, v := range slices.Backward(versions) {
		have, err := registry.Schema(ctx, codec.SchemaRef{ID: v.ID})
		switch {
		case pipeline.ClassOf(err) == pipeline.ClassReject:
			continue // a version that is no valid Avro is not ours
		case err != nil:
			return 0, fmt.Errorf("version %d of subject %s: %w", v.Version, subject, err)
		case codec.SameBytes(have, s):
			return v.ID, nil
		}
	}
	return 0, nil
}
