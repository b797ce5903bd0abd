// The server sends back here after a wrong token.
if (location.search === "?wrong") {
  document.getElementById("wrong").hidden = false;
  history.replaceState(null, "", location.pathname);
}
