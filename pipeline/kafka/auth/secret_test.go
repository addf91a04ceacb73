package auth

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

func TestASecretIsNeverPrinted(t *testing.T) {
	s := NewSecret("canary")
	type holder struct {
		Shown  Secret
		hidden Secret // fmt does not call its methods, because the field is unexported
		Ptr    *Secret
		Map    map[string]Secret
	}
	h := holder{s, s, &s, map[string]Secret{"k": s}}
	asJSON, err := json.Marshal(struct {
		S Secret
		P *Secret
		M map[string]Secret
	}{s, &s, h.Map})
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	for _, handler := range []slog.Handler{slog.NewTextHandler(&log, nil), slog.NewJSONHandler(&log, nil)} {
		l := slog.New(handler)
		l.Info("x", "s", s, "p", &s, "h", h, "hp", &h, "m", h.Map)
		l.With("s", s).WithGroup("g").Info("x", slog.Group("in", "s", s))
	}
	shown := []string{s.String(), s.GoString(), string(asJSON), log.String(), fmt.Errorf("%w: %v", errors.New("x"), s).Error()}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%10.3s", "%T"} {
		shown = append(shown, fmt.Sprintf(verb, s), fmt.Sprintf(verb, &s), fmt.Sprintf(verb, h), fmt.Sprintf(verb, &h), fmt.Sprintf(verb, []any{s, h}))
	}
	for _, text := range shown {
		for _, leak := range []string{"canary", "63616e617279", "63616E617279"} {
			if strings.Contains(text, leak) {
				t.Errorf("shown in %s", text)
			}
		}
	}
	if s.Reveal() != "canary" || NewSecret("") != (Secret{}) || (Secret{}).Reveal() != "" {
		t.Error("Reveal does not return the text of NewSecret")
	}
}
