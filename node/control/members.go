package control

import (
	"fmt"
	"net/http"

	"meshnode/node"
)

// Requests about members name one by its name, its id, or by enough of the id.

type revokeBody struct {
	Peer       string `json:"peer"`
	Reason     string `json:"reason,omitempty"`
	WithIssued bool   `json:"with_issued,omitempty"`
}

type renameBody struct {
	Peer string `json:"peer"`
	Name string `json:"name"`
}

type peerBody struct {
	Peer string `json:"peer"`
}

type policyBody struct {
	Peer     string   `json:"peer"`
	Runtimes []string `json:"runtimes,omitempty"`
	Work     bool     `json:"work,omitempty"`
}

type peerAnswer struct {
	Peer string `json:"peer"`
	Name string `json:"name"`
}

type leaveBody struct {
	Force bool `json:"force,omitempty"`
}

type recoverBody struct {
	Code string `json:"code"`
}

type recoverAnswer struct {
	Mesh string `json:"mesh"`
}

// onePeer finds the one peer that name means.
func (s *Server) onePeer(r *http.Request, name string) (node.Peer, error) {
	peers, err := s.node.Peers(r.Context())
	if err != nil {
		return node.Peer{}, err
	}
	switch found := FindPeers(peers, name); len(found) {
	case 0:
		return node.Peer{}, &node.Error{Code: node.CodeNoPeer, Message: fmt.Sprintf("no peer %.80q", name), Fix: "meshnode peers lists them"}
	case 1:
		return found[0], nil
	default:
		return node.Peer{}, &node.Error{Code: node.CodeBadRequest, Message: fmt.Sprintf("%d peers are called %.80s", len(found), name), Fix: "give more of the id: meshnode peers -o wide"}
	}
}

func (s *Server) postRevoke(r *http.Request) (any, error) {
	var b revokeBody
	if err := readJSON(r, &b); err != nil {
		return nil, err
	}
	p, err := s.onePeer(r, b.Peer)
	if err != nil {
		return nil, err
	}
	return s.node.Revoke(r.Context(), p.ID, b.Reason, b.WithIssued)
}

func (s *Server) postRename(r *http.Request) (any, error) {
	var b renameBody
	if err := readJSON(r, &b); err != nil {
		return nil, err
	}
	p, err := s.onePeer(r, b.Peer)
	if err != nil {
		return nil, err
	}
	return peerAnswer{p.ID, b.Name}, s.node.Rename(r.Context(), p.ID, b.Name)
}

func (s *Server) postForget(r *http.Request) (any, error) {
	var b peerBody
	if err := readJSON(r, &b); err != nil {
		return nil, err
	}
	p, err := s.onePeer(r, b.Peer)
	if err != nil {
		return nil, err
	}
	return peerAnswer{p.ID, p.Name}, s.node.Forget(r.Context(), p.ID)
}

// postPolicy is of allow and deny. The answer is the peer as it stands then.
func (s *Server) postPolicy(allow bool) func(r *http.Request) (any, error) {
	return func(r *http.Request) (any, error) {
		var b policyBody
		if err := readJSON(r, &b); err != nil {
			return nil, err
		}
		p, err := s.onePeer(r, b.Peer)
		if err != nil {
			return nil, err
		}
		set := s.node.Deny
		if allow {
			set = s.node.Allow
		}
		if err := set(r.Context(), p.ID, node.PeerPolicy{Runtimes: b.Runtimes, Work: b.Work}); err != nil {
			return nil, err
		}
		return s.onePeer(r, p.ID)
	}
}

func (s *Server) postLeave(r *http.Request) (any, error) {
	var b leaveBody
	if r.ContentLength != 0 { // of earlier programs it had no body
		if err := readJSON(r, &b); err != nil {
			return nil, err
		}
	}
	return s.node.Leave(r.Context(), b.Force)
}

func (s *Server) postRecover(r *http.Request) (any, error) {
	var b recoverBody
	if err := readJSON(r, &b); err != nil {
		return nil, err
	}
	mesh, err := s.node.Recover(r.Context(), b.Code)
	return recoverAnswer{mesh}, err
}
