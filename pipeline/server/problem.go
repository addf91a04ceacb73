package server

import (
	"encoding/json"
	"fmt"
	"net/http"
)

// A Problem is an answer with an error, as RFC 9457 defines it. Its type is always
// "about:blank", which means that the status says what kind of problem it is.
type Problem struct {
	Title  string `json:"title"` // text of the status
	Status int    `json:"status"`
	Detail string `json:"detail"` // what is wrong, and what to do
}

// ProblemType is the media type of a [Problem].
const ProblemType = "application/problem+json"

// WriteProblem answers a request with a problem.
func WriteProblem(w http.ResponseWriter, status int, format string, args ...any) {
	body, err := json.Marshal(Problem{http.StatusText(status), status, fmt.Sprintf(format, args...)})
	if err != nil {
		panic(err) // cannot happen: it consists of strings and numbers
	}
	head := w.Header()
	head.Set("Content-Type", ProblemType)
	head.Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n')) // an error means that the client is gone
}
