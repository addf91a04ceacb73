package sandbox

import (
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/twmb/franz-go/pkg/sr"
)

// maxRequest is the maximum size of a request in bytes.
const maxRequest = 2 << 20

// registryAPI serves a registry over HTTP. It implements the part of Confluent's
// "Schema Registry API Reference" that common clients need. It does not support
// contexts, exporters, rules, and schema types other than Avro.
type registryAPI struct {
	*registry
	log *slog.Logger
}

func (a registryAPI) handler() http.Handler {
	mux := http.NewServeMux()
	for pattern, f := range map[string]func(*http.Request) (any, error){
		"GET /{$}":           func(*http.Request) (any, error) { return struct{}{}, nil },
		"GET /schemas":       a.getSchemas,
		"GET /schemas/types": func(*http.Request) (any, error) { return []sr.SchemaType{sr.TypeAvro}, nil },

		"GET /schemas/ids/{id}":          a.getSchema,
		"GET /schemas/ids/{id}/schema":   a.getSchemaText,
		"GET /schemas/ids/{id}/subjects": a.getSchemaSubjects,
		"GET /schemas/ids/{id}/versions": a.getSchemaVersions,
		"GET /schemas/guids/{guid}":      a.getByGUID,
		"GET /schemas/guids/{guid}/ids":  a.getIDsByGUID,

		"GET /subjects":                                           a.getSubjects,
		"POST /subjects/{subject}":                                a.lookup,
		"DELETE /subjects/{subject}":                              a.deleteSubjectRequest,
		"GET /subjects/{subject}/versions":                        a.getVersions,
		"POST /subjects/{subject}/versions":                       a.postVersion,
		"GET /subjects/{subject}/versions/{version}":              a.getVersion,
		"DELETE /subjects/{subject}/versions/{version}":           a.deleteVersionRequest,
		"GET /subjects/{subject}/versions/{version}/schema":       a.getVersionText,
		"GET /subjects/{subject}/versions/{version}/referencedby": a.getReferencedBy,

		"GET /config":              a.getConfig,
		"PUT /config":              a.putConfig,
		"DELETE /config":           a.deleteConfig,
		"GET /config/{subject}":    a.getConfig,
		"PUT /config/{subject}":    a.putConfig,
		"DELETE /config/{subject}": a.deleteConfig,

		"POST /compatibility/subjects/{subject}/versions":           a.checkAll,
		"POST /compatibility/subjects/{subject}/versions/{version}": a.checkOne,

		"GET /mode":              a.getMode,
		"PUT /mode":              a.putMode,
		"GET /mode/{subject}":    a.getMode,
		"PUT /mode/{subject}":    a.putMode,
		"DELETE /mode/{subject}": a.deleteMode,
	} {
		mux.HandleFunc(pattern, a.serve(f))
	}
	mux.HandleFunc("/", a.serve(func(r *http.Request) (any, error) {
		return nil, &apiError{http.StatusNotFound, http.StatusNotFound, "this registry does not support " + r.Method + " " + r.URL.Path}
	}))
	return mux
}

// rawText is an answer that is already encoded as JSON.
type rawText string

// serve returns a handler that writes the result of f as JSON.
func (a registryAPI) serve(f func(*http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, maxRequest)
		answer, err := f(r)
		status := http.StatusOK
		if err != nil {
			var known *apiError
			if !errors.As(err, &known) {
				known = &apiError{http.StatusInternalServerError, sr.ErrStoreError.Code, err.Error()}
			}
			status, answer = known.status, known
			a.log.Debug("registry rejected a request", "method", r.Method, "path", r.URL.Path, "code", known.Code, "err", known.Message)
		}
		body, isText := answer.(rawText)
		if !isText {
			text, err := json.Marshal(answer)
			if err != nil {
				a.log.Error("registry cannot encode an answer", "method", r.Method, "path", r.URL.Path, "err", err)
				http.Error(w, "", http.StatusInternalServerError)
				return
			}
			body = rawText(text)
		}
		w.Header().Set("Content-Type", "application/vnd.schemaregistry.v1+json")
		w.WriteHeader(status)
		if _, err := w.Write([]byte(body)); err != nil {
			a.log.Debug("registry cannot write an answer", "path", r.URL.Path, "err", err)
		}
	}
}

func decode(r *http.Request, v any) error {
	err := json.NewDecoder(r.Body).Decode(v)
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return fail(sr.ErrSchemaTooLarge, "the request has more than %d bytes", tooLarge.Limit)
	}
	if err != nil {
		return &apiError{http.StatusBadRequest, http.StatusBadRequest, "the request is not the expected JSON: " + err.Error()}
	}
	return nil
}

// flagged reports whether a query parameter is true.
func flagged(r *http.Request, name string) bool {
	on, err := strconv.ParseBool(r.URL.Query().Get(name))
	return err == nil && on
}

func versionNumber(r *http.Request) (int, error) {
	text := r.PathValue("version")
	if text == "latest" || text == "-1" {
		return latest, nil
	}
	n, err := strconv.ParseInt(text, 10, 32)
	if err != nil || n < 1 {
		return 0, fail(sr.ErrInvalidVersion, "version %q: want a number from 1 to 2^31-1, or latest", text)
	}
	return int(n), nil
}

// describe returns a version in the format of the API.
func (s *registryState) describe(subject string, v storedVersion) sr.SubjectSchema {
	schema := s.Schemas[v.ID]
	return sr.SubjectSchema{
		Subject: subject, Version: v.Version, ID: v.ID, GUID: schema.guid(),
		Schema: sr.Schema{Schema: schema.Text, References: schema.References},
	}
}

// schemaByID returns the schema whose id is in the path. A schema can be read as long as
// a version has it, even a soft-deleted one, because topics may still hold records with
// its id.
func (s *registryState) schemaByID(r *http.Request) (int, storedSchema, error) {
	id, err := strconv.Atoi(r.PathValue("id"))
	if err == nil {
		if schema, ok := s.Schemas[id]; ok {
			return id, schema, nil
		}
	}
	return 0, storedSchema{}, fail(sr.ErrSchemaNotFound, "schema %s not found", r.PathValue("id"))
}

func (a registryAPI) getSchema(r *http.Request) (any, error) {
	_, schema, err := a.read().schemaByID(r)
	return struct {
		sr.Schema
		GUID string `json:"guid"`
	}{sr.Schema{Schema: schema.Text, References: schema.References}, schema.guid()}, err
}

func (a registryAPI) getSchemaText(r *http.Request) (any, error) {
	_, schema, err := a.read().schemaByID(r)
	return rawText(schema.Text), err
}

func (a registryAPI) getSchemaSubjects(r *http.Request) (any, error) {
	subjects := []string{}
	err := a.eachVersionOf(r, func(subject string, _ storedVersion) {
		if !slices.Contains(subjects, subject) {
			subjects = append(subjects, subject)
		}
	})
	return subjects, err
}

func (a registryAPI) getSchemaVersions(r *http.Request) (any, error) {
	versions := []sr.SubjectVersion{}
	err := a.eachVersionOf(r, func(subject string, v storedVersion) {
		versions = append(versions, sr.SubjectVersion{Subject: subject, Version: v.Version})
	})
	return versions, err
}

// eachVersionOf calls f with each version that has the schema in the path.
func (a registryAPI) eachVersionOf(r *http.Request, f func(subject string, v storedVersion)) error {
	state := a.read()
	id, _, err := state.schemaByID(r)
	if err != nil {
		return err
	}
	for _, subject := range slices.Sorted(maps.Keys(state.Subjects)) {
		for _, v := range state.versions(subject, flagged(r, "deleted")) {
			if v.ID == id {
				f(subject, v)
			}
		}
	}
	return nil
}

func (s *registryState) schemaByGUID(r *http.Request) (int, storedSchema, error) {
	for id, schema := range s.Schemas {
		if schema.guid() == strings.ToLower(r.PathValue("guid")) {
			return id, schema, nil
		}
	}
	return 0, storedSchema{}, fail(sr.ErrSchemaNotFound, "schema %s not found", r.PathValue("guid"))
}

func (a registryAPI) getByGUID(r *http.Request) (any, error) {
	id, schema, err := a.read().schemaByGUID(r)
	return sr.SubjectSchema{ID: id, GUID: schema.guid(), Schema: sr.Schema{Schema: schema.Text, References: schema.References}}, err
}

func (a registryAPI) getIDsByGUID(r *http.Request) (any, error) {
	id, _, err := a.read().schemaByGUID(r)
	return []sr.ContextID{{Context: ".", ID: id}}, err
}

func (a registryAPI) getSchemas(r *http.Request) (any, error) {
	state := a.read()
	schemas := []sr.SubjectSchema{}
	for _, subject := range state.subjects(r) {
		all := state.versions(subject, flagged(r, "deleted"))
		if flagged(r, "latestOnly") {
			all = all[len(all)-1:]
		}
		for _, v := range all {
			schemas = append(schemas, state.describe(subject, v))
		}
	}
	return schemas, nil
}

// subjects returns the subjects that match the request's parameters. Each has at least
// one version.
func (s *registryState) subjects(r *http.Request) []string {
	prefix := r.URL.Query().Get("subjectPrefix")
	names := []string{}
	for _, name := range slices.Sorted(maps.Keys(s.Subjects)) {
		live, all := s.versions(name, false), s.versions(name, true)
		shown := len(live) > 0
		switch {
		case flagged(r, "deletedOnly"):
			shown = len(all) > 0 && len(live) == 0
		case flagged(r, "deleted"):
			shown = len(all) > 0
		}
		if shown && strings.HasPrefix(name, prefix) {
			names = append(names, name)
		}
	}
	return names
}

func (a registryAPI) getSubjects(r *http.Request) (any, error) { return a.read().subjects(r), nil }

func (a registryAPI) lookup(r *http.Request) (any, error) {
	var in sr.Schema
	if err := decode(r, &in); err != nil {
		return nil, err
	}
	state, subject, deleted := a.read(), r.PathValue("subject"), flagged(r, "deleted")
	if len(state.versions(subject, deleted)) == 0 {
		return nil, fail(sr.ErrSubjectNotFound, "subject %q not found", subject)
	}
	schema, err := state.newSchema(in)
	if err != nil {
		return nil, err
	}
	v, ok := state.find(subject, schema, deleted)
	if !ok {
		return nil, fail(sr.ErrSchemaNotFound, "schema not found under subject %q", subject)
	}
	return state.describe(subject, v), nil
}

func (a registryAPI) postVersion(r *http.Request) (any, error) {
	var in struct {
		sr.Schema
		ID      int `json:"id"`
		Version int `json:"version"`
	}
	if err := decode(r, &in); err != nil {
		return nil, err
	}
	if in.ID > 0 || in.Version > 0 {
		return nil, fail(sr.ErrOperationNotPermitted, "the request sets an id or version, but this registry does not support IMPORT mode")
	}
	var out sr.SubjectSchema
	err := a.write(r.PathValue("subject"), func(s *registryState) error {
		v, err := s.register(r.PathValue("subject"), in.Schema)
		out = s.describe(r.PathValue("subject"), v)
		return err
	})
	return out, err
}

func (a registryAPI) getVersions(r *http.Request) (any, error) {
	state, subject := a.read(), r.PathValue("subject")
	numbers := []int{}
	for _, v := range state.versions(subject, true) {
		if v.Deleted && (flagged(r, "deleted") || flagged(r, "deletedOnly")) || !v.Deleted && !flagged(r, "deletedOnly") {
			numbers = append(numbers, v.Version)
		}
	}
	if len(numbers) == 0 {
		return nil, fail(sr.ErrSubjectNotFound, "subject %q not found", subject)
	}
	return numbers, nil
}

// versionInPath returns the version that the path names.
func (s *registryState) versionInPath(r *http.Request) (sr.SubjectSchema, error) {
	subject, deleted := r.PathValue("subject"), flagged(r, "deleted")
	number, err := versionNumber(r)
	if err != nil {
		return sr.SubjectSchema{}, err
	}
	if len(s.versions(subject, deleted)) == 0 {
		return sr.SubjectSchema{}, fail(sr.ErrSubjectNotFound, "subject %q not found", subject)
	}
	v, ok := s.version(subject, number, deleted)
	if !ok {
		return sr.SubjectSchema{}, fail(sr.ErrVersionNotFound, "subject %q has no version %d", subject, number)
	}
	return s.describe(subject, v), nil
}

func (a registryAPI) getVersion(r *http.Request) (any, error) { return a.read().versionInPath(r) }

func (a registryAPI) getVersionText(r *http.Request) (any, error) {
	v, err := a.read().versionInPath(r)
	return rawText(v.Schema.Schema), err
}

func (a registryAPI) getReferencedBy(r *http.Request) (any, error) {
	state := a.read()
	v, err := state.versionInPath(r)
	if err != nil {
		return nil, err
	}
	return state.referencedBy(v.Subject, v.Version), nil
}

func (a registryAPI) deleteSubjectRequest(r *http.Request) (any, error) {
	var versions []int
	err := a.write(r.PathValue("subject"), func(s *registryState) (err error) {
		versions, err = s.deleteSubject(r.PathValue("subject"), flagged(r, "permanent"))
		return err
	})
	return versions, err
}

func (a registryAPI) deleteVersionRequest(r *http.Request) (any, error) {
	number, err := versionNumber(r)
	if err != nil {
		return nil, err
	}
	err = a.write(r.PathValue("subject"), func(s *registryState) (err error) {
		number, err = s.deleteVersion(r.PathValue("subject"), number, flagged(r, "permanent"))
		return err
	})
	return number, err
}

// The API names the level differently in answers to GET (shownLevel) and elsewhere
// (givenLevel).
type (
	shownLevel struct {
		Level string `json:"compatibilityLevel"`
	}
	givenLevel struct {
		Level string `json:"compatibility"`
	}
)

func (a registryAPI) getConfig(r *http.Request) (any, error) {
	state, subject := a.read(), r.PathValue("subject")
	own := state.Subjects[subject].Compatibility
	switch {
	case own != "":
		return shownLevel{own}, nil
	case subject != "" && !flagged(r, "defaultToGlobal"):
		return nil, fail(sr.ErrSubjectLevelCompatibilityNotConfigured, "subject %q has no compatibility level of its own", subject)
	}
	return shownLevel{state.Compatibility}, nil
}

func (a registryAPI) putConfig(r *http.Request) (any, error) {
	var in givenLevel
	if err := decode(r, &in); err != nil {
		return nil, err
	}
	in.Level = strings.ToUpper(in.Level)
	if _, ok := compatibilities[in.Level]; !ok {
		return nil, fail(sr.ErrInvalidCompatibilityLevel, "unknown compatibility %q: want one of %s", in.Level,
			strings.Join(slices.Sorted(maps.Keys(compatibilities)), ", "))
	}
	return in, a.setLevel(r.PathValue("subject"), in.Level)
}

// deleteConfig answers with the deleted level.
func (a registryAPI) deleteConfig(r *http.Request) (any, error) {
	state, subject := a.read(), r.PathValue("subject")
	if subject == "" {
		return givenLevel{state.Compatibility}, a.setLevel("", DefaultCompatibility)
	}
	own := state.Subjects[subject].Compatibility
	if own == "" {
		return nil, fail(sr.ErrSubjectLevelCompatibilityNotConfigured, "subject %q has no compatibility level of its own", subject)
	}
	return givenLevel{own}, a.setLevel(subject, "")
}

func (a registryAPI) setLevel(subject, level string) error {
	return a.write(subject, func(s *registryState) error {
		if subject == "" {
			s.Compatibility = level
			return nil
		}
		s.update(subject, func(sub *storedSubject) { sub.Compatibility = level })
		return nil
	})
}

// checkAll checks a schema against the same versions as a registration.
func (a registryAPI) checkAll(r *http.Request) (any, error) {
	state := a.read()
	return state.answerCheck(r, state.checked(r.PathValue("subject")))
}

// checkOne checks a schema against a single version.
func (a registryAPI) checkOne(r *http.Request) (any, error) {
	state := a.read()
	v, err := state.versionInPath(r)
	if err != nil {
		return nil, err
	}
	return state.answerCheck(r, []storedVersion{{Version: v.Version, ID: v.ID}})
}

func (s *registryState) answerCheck(r *http.Request, against []storedVersion) (any, error) {
	var in sr.Schema
	if err := decode(r, &in); err != nil {
		return nil, err
	}
	schema, err := s.newSchema(in)
	if err != nil {
		return nil, err
	}
	faults, err := s.incompatible(r.PathValue("subject"), schema, against)
	if err != nil {
		return nil, err
	}
	answer := struct {
		Is       bool     `json:"is_compatible"`
		Messages []string `json:"messages,omitempty"`
	}{Is: len(faults) == 0}
	if flagged(r, "verbose") {
		answer.Messages = faults
	}
	return answer, nil
}
