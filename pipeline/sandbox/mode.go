package sandbox

import (
	"net/http"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/sr"
)

// The modes of the registry and of its subjects. The mode of a subject counts before that
// of the registry.
const (
	readWrite = "READWRITE"
	readOnly  = "READONLY" // schemas and levels can be read, but not changed
)

// mode returns the mode of a subject.
func (s *registryState) mode(subject string) string {
	for _, mode := range []string{s.Subjects[subject].Mode, s.Mode} {
		if mode != "" {
			return mode
		}
	}
	return readWrite
}

// update changes a subject. It removes one that holds nothing.
func (s *registryState) update(subject string, change func(*storedSubject)) {
	sub := s.Subjects[subject]
	if change(&sub); sub.Compatibility == "" && sub.Mode == "" && len(sub.Versions) == 0 {
		delete(s.Subjects, subject)
		return
	}
	s.Subjects[subject] = sub
}

// write is change for a subject that is not in read-only mode; "" is the registry.
func (a registryAPI) write(subject string, f func(*registryState) error) error {
	return a.change(func(s *registryState) error {
		if s.mode(subject) == readOnly {
			what := "subject " + subject
			if subject == "" {
				what = "the registry"
			}
			return fail(sr.ErrOperationNotPermitted, "%s is in read-only mode", what)
		}
		return f(s)
	})
}

type modeBody struct {
	Mode string `json:"mode"`
}

func (a registryAPI) getMode(r *http.Request) (any, error) {
	state, subject := a.read(), r.PathValue("subject")
	if subject != "" && state.Subjects[subject].Mode == "" && !flagged(r, "defaultToGlobal") {
		return nil, fail(sr.ErrSubjectLevelModeNotConfigured, "subject %q has no mode of its own", subject)
	}
	return modeBody{state.mode(subject)}, nil
}

func (a registryAPI) putMode(r *http.Request) (any, error) {
	var in modeBody
	if err := decode(r, &in); err != nil {
		return nil, err
	}
	in.Mode = strings.ToUpper(in.Mode)
	if !slices.Contains([]string{readWrite, readOnly}, in.Mode) {
		return nil, fail(sr.ErrInvalidMode, "mode %q: this registry supports only %s and %s", in.Mode, readWrite, readOnly)
	}
	return in, a.setMode(r.PathValue("subject"), in.Mode)
}

// deleteMode answers with the deleted mode.
func (a registryAPI) deleteMode(r *http.Request) (any, error) {
	subject := r.PathValue("subject")
	own := a.read().Subjects[subject].Mode
	if own == "" {
		return nil, fail(sr.ErrSubjectLevelModeNotConfigured, "subject %q has no mode of its own", subject)
	}
	return modeBody{own}, a.setMode(subject, "")
}

func (a registryAPI) setMode(subject, mode string) error {
	return a.change(func(s *registryState) error {
		if subject == "" {
			s.Mode = mode
			return nil
		}
		s.update(subject, func(sub *storedSubject) { sub.Mode = mode })
		return nil
	})
}
