package sandbox

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"sync"

	"github.com/twmb/avro"
	"github.com/twmb/franz-go/pkg/sr"

	"millrace/pipeline/private"
)

// registry is a schema registry for Avro. Changes are atomic, in memory and in the
// file.
type registry struct {
	file string // "" means in memory only

	mu    sync.Mutex
	state *registryState // guarded by mu; replaced as a whole, the value never changes
}

// registryState is the data of a registry, in the format of its file.
type registryState struct {
	Format        int                      `json:"format"` // 1
	NextID        int                      `json:"next_id"`
	Compatibility string                   `json:"compatibility"`
	Mode          string                   `json:"mode,omitempty"` // "" means read and write
	Schemas       map[int]storedSchema     `json:"schemas"`        // by id
	Subjects      map[string]storedSubject `json:"subjects"`
}

// storedSchema is a schema. Equal schemas share an id across all subjects.
type storedSchema struct {
	Text       string               `json:"schema"` // compact JSON
	References []sr.SchemaReference `json:"references,omitempty"`
}

// storedSubject holds the versions of a subject in ascending order. A subject may have
// a level or a mode, and no versions.
type storedSubject struct {
	Compatibility string          `json:"compatibility,omitempty"` // "" means the registry's level
	Mode          string          `json:"mode,omitempty"`          // "" means the registry's mode
	Versions      []storedVersion `json:"versions,omitempty"`
}

type storedVersion struct {
	Version int  `json:"version"`
	ID      int  `json:"id"`
	Deleted bool `json:"deleted,omitempty"` // soft deleted: its schema id can still be read
}

const registryFormat = 1

// openRegistry reads the registry's file, or starts with an empty registry if the file
// does not exist.
func openRegistry(file string) (*registry, error) {
	r := &registry{file: file, state: &registryState{
		Format: registryFormat, NextID: 1, Compatibility: DefaultCompatibility,
		Schemas: map[int]storedSchema{}, Subjects: map[string]storedSubject{},
	}}
	if file == "" {
		return r, nil
	}
	data, err := readFile(file)
	if err != nil || data == nil {
		return r, err
	}
	state := &registryState{}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(state); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, fmt.Errorf("%s: more than one value", file)
	}
	if err := state.check(); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	r.state = state
	return r, nil
}

// check returns an error if the state cannot be the work of this package, for example
// after damage to the file.
func (s *registryState) check() error {
	if s.Format != registryFormat {
		return fmt.Errorf("format %d, expected %d", s.Format, registryFormat)
	}
	if _, ok := compatibilities[s.Compatibility]; !ok {
		return fmt.Errorf("unknown compatibility %q", s.Compatibility)
	}
	if s.Schemas == nil || s.Subjects == nil {
		return errors.New("schemas or subjects are missing")
	}
	for id := range s.Schemas {
		if id < 1 || id >= s.NextID {
			return fmt.Errorf("schema id %d is not below next_id %d", id, s.NextID)
		}
		if _, err := s.parse(s.Schemas[id]); err != nil {
			return fmt.Errorf("schema id %d: %w", id, err)
		}
	}
	for name, subject := range s.Subjects {
		last := 0
		for _, v := range subject.Versions {
			if v.Version <= last {
				return fmt.Errorf("subject %s: version %d after %d", name, v.Version, last)
			}
			if _, ok := s.Schemas[v.ID]; !ok {
				return fmt.Errorf("subject %s version %d: unknown schema id %d", name, v.Version, v.ID)
			}
			last = v.Version
		}
		if _, ok := compatibilities[subject.Compatibility]; !ok && subject.Compatibility != "" {
			return fmt.Errorf("subject %s: unknown compatibility %q", name, subject.Compatibility)
		}
	}
	return nil
}

// read returns the current state. The caller must not change it.
func (r *registry) read() *registryState {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state
}

// change calls f with a copy of the state. If f succeeds, change writes the copy to the
// file and makes it the current state.
func (r *registry) change(f func(*registryState) error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	next := *r.state
	next.Schemas = maps.Clone(next.Schemas)
	next.Subjects = maps.Clone(next.Subjects)
	if err := f(&next); err != nil {
		return err
	}
	if r.file != "" {
		data, err := json.MarshalIndent(&next, "", " ")
		if err == nil {
			err = private.Replace(r.file, append(data, '\n'))
		}
		if err != nil {
			return &apiError{http.StatusInternalServerError, sr.ErrStoreError.Code, "cannot save the change: " + err.Error()}
		}
	}
	r.state = &next
	return nil
}

// apiError is an error in the format of the REST API.
type apiError struct {
	status  int
	Code    int    `json:"error_code"`
	Message string `json:"message"`
}

func (e *apiError) Error() string { return e.Message }

// fail returns an apiError. The HTTP status is the first three digits of the code.
func fail(e *sr.Error, format string, args ...any) error {
	status := e.Code
	for status > 999 {
		status /= 10
	}
	return &apiError{status, e.Code, fmt.Sprintf(format, args...)}
}

// newSchema checks a schema from a client.
func (s *registryState) newSchema(in sr.Schema) (storedSchema, error) {
	if in.Type != sr.TypeAvro {
		return storedSchema{}, fail(sr.ErrInvalidSchema, "schema type %s: this registry supports only AVRO", in.Type)
	}
	if in.SchemaMetadata != nil || in.SchemaRuleSet != nil {
		return storedSchema{}, fail(sr.ErrInvalidSchema, "this registry does not support metadata and ruleSet")
	}
	var text bytes.Buffer
	if err := json.Compact(&text, []byte(in.Schema)); err != nil {
		return storedSchema{}, fail(sr.ErrInvalidSchema, "the schema is not JSON: %v", err)
	}
	stored := storedSchema{Text: text.String()}
	if len(in.References) > 0 { // an empty list means the same as none
		stored.References = in.References
	}
	if _, err := s.parse(stored); err != nil {
		return storedSchema{}, fail(sr.ErrInvalidSchema, "invalid schema: %v", err)
	}
	return stored, nil
}

// parse parses a schema and its references.
func (s *registryState) parse(schema storedSchema) (*avro.Schema, error) {
	var cache avro.SchemaCache
	return s.parseInto(&cache, schema, 0)
}

const maxReferenceDepth = 16

func (s *registryState) parseInto(cache *avro.SchemaCache, schema storedSchema, depth int) (*avro.Schema, error) {
	if depth > maxReferenceDepth {
		return nil, fmt.Errorf("references are nested deeper than %d levels", maxReferenceDepth)
	}
	for _, ref := range schema.References {
		v, ok := s.version(ref.Subject, ref.Version, true)
		if !ok {
			return nil, fmt.Errorf("reference %s: subject %s has no version %d", ref.Name, ref.Subject, ref.Version)
		}
		if _, err := s.parseInto(cache, s.Schemas[v.ID], depth+1); err != nil {
			return nil, fmt.Errorf("reference %s: %w", ref.Name, err)
		}
	}
	return cache.Parse(schema.Text)
}

// identity returns a text that is equal for equal schemas. White space and the order of
// keys do not matter; everything else does, including docs, defaults and aliases.
func (s storedSchema) identity() string {
	dec := json.NewDecoder(bytes.NewReader([]byte(s.Text)))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return s.Text // cannot happen: the schema was parsed before
	}
	text, err := json.Marshal([]any{v, s.References})
	if err != nil {
		return s.Text
	}
	return string(text)
}

// guid returns a UUID (RFC 9562, version 8) that is the same for equal schemas in every
// registry.
func (s storedSchema) guid() string {
	sum := sha256.Sum256([]byte(s.identity()))
	g := sum[:16]
	g[6] = g[6]&0x0f | 0x80
	g[8] = g[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", g[:4], g[4:6], g[6:8], g[8:10], g[10:])
}

// versions returns the versions of a subject. deleted includes soft-deleted ones.
func (s *registryState) versions(subject string, deleted bool) []storedVersion {
	all := s.Subjects[subject].Versions
	if deleted {
		return all
	}
	return slices.DeleteFunc(slices.Clone(all), func(v storedVersion) bool { return v.Deleted })
}

// latest as a version number means the last version.
const latest = -1

func (s *registryState) version(subject string, number int, deleted bool) (storedVersion, bool) {
	all := s.versions(subject, deleted)
	if number == latest && len(all) > 0 {
		return all[len(all)-1], true
	}
	for _, v := range all {
		if v.Version == number {
			return v, true
		}
	}
	return storedVersion{}, false
}

// find returns the version of a subject with this schema.
func (s *registryState) find(subject string, schema storedSchema, deleted bool) (storedVersion, bool) {
	identity := schema.identity()
	for _, v := range s.versions(subject, deleted) {
		if s.Schemas[v.ID].identity() == identity {
			return v, true
		}
	}
	return storedVersion{}, false
}

// level returns the compatibility level of a subject.
func (s *registryState) level(subject string) compatibility {
	name := s.Subjects[subject].Compatibility
	if name == "" {
		name = s.Compatibility
	}
	return compatibilities[name]
}

// incompatible checks a schema against versions of a subject, and returns the faults.
func (s *registryState) incompatible(subject string, schema storedSchema, against []storedVersion) (faults []string, err error) {
	level := s.level(subject)
	parsed, err := s.parse(schema)
	if err != nil {
		return nil, err
	}
	for _, v := range against {
		old, err := s.parse(s.Schemas[v.ID])
		if err != nil {
			return nil, err
		}
		faults = append(faults, level.compatible(parsed, old, v.Version)...)
	}
	return faults, nil
}

// checked returns the versions against which a new version of a subject is checked.
func (s *registryState) checked(subject string) []storedVersion {
	all := s.versions(subject, false)
	if !s.level(subject).transitive && len(all) > 1 {
		return all[len(all)-1:]
	}
	return all
}

// register returns the version of a subject with a schema. It adds the version if it
// does not exist.
func (s *registryState) register(subject string, in sr.Schema) (storedVersion, error) {
	schema, err := s.newSchema(in)
	if err != nil {
		return storedVersion{}, err
	}
	if v, ok := s.find(subject, schema, false); ok {
		return v, nil
	}
	faults, err := s.incompatible(subject, schema, s.checked(subject))
	if err != nil {
		return storedVersion{}, err
	}
	if len(faults) > 0 {
		return storedVersion{}, fail(sr.ErrIncompatibleSchema, "the schema is incompatible with an earlier version of subject %q: %s", subject, faults[0])
	}
	v := storedVersion{Version: 1, ID: s.idOf(schema)}
	if v.ID == 0 {
		v.ID = s.NextID
		s.NextID++
		s.Schemas[v.ID] = schema
	}
	sub := s.Subjects[subject]
	if n := len(sub.Versions); n > 0 {
		v.Version = sub.Versions[n-1].Version + 1
	}
	sub.Versions = append(slices.Clip(sub.Versions), v)
	s.Subjects[subject] = sub
	return v, nil
}

// idOf returns the id of an equal schema, or 0 if there is none.
func (s *registryState) idOf(schema storedSchema) int {
	identity := schema.identity()
	for _, id := range slices.Sorted(maps.Keys(s.Schemas)) {
		if s.Schemas[id].identity() == identity {
			return id
		}
	}
	return 0
}

// deleteSubject deletes all versions of a subject. A permanent delete is possible only
// after a soft delete.
func (s *registryState) deleteSubject(subject string, permanent bool) (versions []int, err error) {
	all, live := s.versions(subject, true), s.versions(subject, false)
	switch {
	case len(all) == 0:
		return nil, fail(sr.ErrSubjectNotFound, "subject %q not found", subject)
	case permanent && len(live) > 0:
		return nil, fail(sr.ErrSubjectNotSoftDeleted, "subject %q was not deleted first before being permanently deleted", subject)
	case !permanent && len(live) == 0:
		return nil, fail(sr.ErrSubjectSoftDeleted, "subject %q was soft deleted; set permanent=true to delete it permanently", subject)
	}
	doomed := live
	if permanent {
		doomed = all
	}
	for _, v := range doomed {
		if err := s.unreferenced(subject, v.Version); err != nil {
			return nil, err
		}
		versions = append(versions, v.Version)
	}
	s.drop(subject, versions, permanent)
	return versions, nil
}

// deleteVersion deletes one version and returns its number. A permanent delete is
// possible only after a soft delete.
func (s *registryState) deleteVersion(subject string, number int, permanent bool) (int, error) {
	if len(s.versions(subject, true)) == 0 {
		return 0, fail(sr.ErrSubjectNotFound, "subject %q not found", subject)
	}
	v, ok := s.version(subject, number, number != latest || permanent)
	switch {
	case !ok:
		return 0, fail(sr.ErrVersionNotFound, "version %d not found", number)
	case permanent && !v.Deleted:
		return 0, fail(sr.ErrSchemaVersionNotSoftDeleted, "subject %q version %d was not deleted first before being permanently deleted", subject, v.Version)
	case !permanent && v.Deleted:
		return 0, fail(sr.ErrSchemaVersionSoftDeleted, "subject %q version %d was soft deleted; set permanent=true to delete it permanently", subject, v.Version)
	}
	if err := s.unreferenced(subject, v.Version); err != nil {
		return 0, err
	}
	s.drop(subject, []int{v.Version}, permanent)
	return v.Version, nil
}

// unreferenced returns an error if a schema in use refers to a version.
func (s *registryState) unreferenced(subject string, version int) error {
	if ids := s.referencedBy(subject, version); len(ids) > 0 {
		return fail(sr.ErrReferenceExists, "subject %q version %d is referenced by the schemas with ids %v", subject, version, ids)
	}
	return nil
}

// referencedBy returns the sorted ids of the schemas in use that refer to a version.
func (s *registryState) referencedBy(subject string, version int) []int {
	used := s.used(false)
	ids := []int{}
	for id, schema := range s.Schemas {
		if used[id] && slices.ContainsFunc(schema.References, func(r sr.SchemaReference) bool {
			return r.Subject == subject && r.Version == version
		}) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// used returns the schema ids of all versions of all subjects. deleted includes
// soft-deleted versions.
func (s *registryState) used(deleted bool) map[int]bool {
	used := map[int]bool{}
	for name := range s.Subjects {
		for _, v := range s.versions(name, deleted) {
			used[v.ID] = true
		}
	}
	return used
}

// drop deletes versions of a subject. A permanent delete also deletes schemas without
// a version. Ids are never reused.
func (s *registryState) drop(subject string, versions []int, permanent bool) {
	s.update(subject, func(sub *storedSubject) {
		sub.Versions = slices.Clone(sub.Versions)
		if permanent {
			sub.Versions = slices.DeleteFunc(sub.Versions, func(v storedVersion) bool { return slices.Contains(versions, v.Version) })
		}
		for i, v := range sub.Versions {
			if slices.Contains(versions, v.Version) {
				sub.Versions[i].Deleted = true
			}
		}
	})
	used := s.used(true)
	maps.DeleteFunc(s.Schemas, func(id int, _ storedSchema) bool { return !used[id] })
}
