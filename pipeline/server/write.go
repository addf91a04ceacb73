package server

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"

	"millrace/pipeline/private"
)

// WriteText answers a request with a text.
func WriteText(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, strings.TrimRight(text, "\n")+"\n") // an error means that the client is gone
}

// WriteJSON answers a request with a value as indented JSON.
func WriteJSON(w http.ResponseWriter, status int, v any) {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		WriteProblem(w, http.StatusInternalServerError, "%v", err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(data, '\n')) // an error means that the client is gone
}

// WriteFile replaces a file atomically: a process that waits for the file never reads a
// part of it.
func WriteFile(path, text string) error { return private.Replace(path, []byte(text)) }
